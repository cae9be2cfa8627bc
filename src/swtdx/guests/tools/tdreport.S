# tdreport: ask the kernel for a TDREPORT.  Standard input: REPORTDATA, up to 64 bytes, padded with
# zeros.  Standard output: the 1024 bytes of TDREPORT_STRUCT.  Exit status 1, and a line on standard
# error, if there is no /dev/tdx_guest or the kernel refuses.
#
# Sources: Linux include/uapi/linux/tdx-guest.h: TDX_CMD_GET_REPORT0 is _IOWR('T', 1, struct of
# reportdata[64] and tdreport[1024]); system call numbers: arch/x86/entry/syscalls/syscall_64.tbl.

    .intel_syntax noprefix

    .set SYS_READ, 0
    .set SYS_WRITE, 1
    .set SYS_OPEN, 2
    .set SYS_IOCTL, 16
    .set SYS_EXIT, 60
    .set O_RDWR, 2
    .set REPORTDATA_BYTES, 64
    .set TDREPORT_BYTES, 1024
    # direction read+write (3) << 30 | size << 16 | 'T' << 8 | 1
    .set TDX_CMD_GET_REPORT0, 3 << 30 | (REPORTDATA_BYTES + TDREPORT_BYTES) << 16 | 'T' << 8 | 1

    .text
# The ELF header and its one program header are written out here, so that the result does not depend on
# a linker's habits (System V ABI, chapters 4 and 5; x86-64 supplement: machine 62).
    .set LOAD_AT, 0x400000
image:
    .ascii  "\177ELF"
    .byte   2, 1, 1, 0                      # 64 bits, little-endian, version 1, System V
    .quad   0
    .word   2, 62                           # ET_EXEC, EM_X86_64
    .long   1
    .quad   LOAD_AT + _start - image        # e_entry
    .quad   program_header - image          # e_phoff
    .quad   0                               # e_shoff
    .long   0                               # e_flags
    .word   64, 56, 1, 0, 0, 0              # sizes and counts of headers
program_header:
    .long   1, 7                            # PT_LOAD, readable, writable, executable
    .quad   0, LOAD_AT, LOAD_AT             # offset, virtual and physical address
    .quad   image_end - image               # bytes in the file
    .quad   image_end - image + REPORTDATA_BYTES + TDREPORT_BYTES + 64
    .quad   0x1000

    .globl _start
_start:
    # Read until 64 bytes are there or the input ends.
    xor     ebx, ebx
1:  xor     edi, edi
    lea     rsi, [rip + request]
    add     rsi, rbx
    mov     edx, REPORTDATA_BYTES
    sub     edx, ebx
    jz      2f
    mov     eax, SYS_READ
    syscall
    test    rax, rax
    js      fail
    jz      2f
    add     rbx, rax
    jmp     1b

2:  lea     rdi, [rip + device]
    mov     esi, O_RDWR
    xor     edx, edx
    mov     eax, SYS_OPEN
    syscall
    test    rax, rax
    js      fail
    mov     edi, eax
    mov     esi, TDX_CMD_GET_REPORT0
    lea     rdx, [rip + request]
    mov     eax, SYS_IOCTL
    syscall
    test    rax, rax
    jnz     fail

    # A pipe may take it in pieces.
    lea     rsi, [rip + request + REPORTDATA_BYTES]
    mov     edx, TDREPORT_BYTES
3:  mov     edi, 1
    mov     eax, SYS_WRITE
    syscall
    test    rax, rax
    jle     fail
    add     rsi, rax
    sub     rdx, rax
    jnz     3b
    xor     edi, edi
    jmp     exit

fail:
    mov     edi, 2
    lea     rsi, [rip + complaint]
    mov     edx, offset complaint_length
    mov     eax, SYS_WRITE
    syscall
    mov     edi, 1
exit:
    mov     eax, SYS_EXIT
    syscall

device:
    .asciz  "/dev/tdx_guest"
complaint:
    .ascii  "tdreport: no TDREPORT from /dev/tdx_guest (is this a TD, and is the tdx_guest module loaded?)\n"
    .set complaint_length, . - complaint

    .balign 64
image_end:
    .set request, image_end                 # memory beyond the file, zero when the program starts
