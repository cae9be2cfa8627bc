# renew HEX: what a guest needs that goes on from a snapshot.  HEX is 160 hexadecimal digits: the time since
# 1970 (seconds, then nanoseconds, 8 bytes each, little-endian), and 64 bytes that no other guest knows.  Sets
# the clock, gives the bytes to the kernel's random source, and has it take them over at once.  Exit status 1,
# and a line on standard error, if the argument is another or the kernel refuses.
#
# Sources: Linux include/uapi/linux/random.h: RNDRESEEDCRNG is _IO('R', 7); drivers/char/random.c: what is
# written to /dev/urandom is mixed in, but comes into effect only with the next reseeding (a minute, at worst);
# system call numbers: arch/x86/entry/syscalls/syscall_64.tbl; the process's stack at its start: System V ABI,
# x86-64 supplement, section 3.4.1.

    .intel_syntax noprefix

    .set SYS_WRITE, 1
    .set SYS_OPEN, 2
    .set SYS_IOCTL, 16
    .set SYS_EXIT, 60
    .set SYS_CLOCK_SETTIME, 227
    .set CLOCK_REALTIME, 0
    .set O_RDWR, 2
    .set TIME_BYTES, 16
    .set SEED_BYTES, 64
    .set RNDRESEEDCRNG, 'R' << 8 | 7

    .text
# The ELF header and its one program header are written out here, as in tdreport.S.
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
    .quad   image_end - image + TIME_BYTES + SEED_BYTES
    .quad   0x1000

    .globl _start
_start:
    # The stack: argc, argv[0], argv[1] ...
    cmp     qword ptr [rsp], 2
    jne     fail
    mov     rsi, [rsp + 16]
    lea     rdi, [rip + given]
    mov     ecx, TIME_BYTES + SEED_BYTES
1:  call    digit
    mov     edx, eax
    shl     edx, 4
    call    digit
    or      eax, edx
    mov     [rdi], al
    inc     rdi
    dec     ecx
    jnz     1b
    cmp     byte ptr [rsi], 0
    jne     fail

    mov     edi, CLOCK_REALTIME
    lea     rsi, [rip + given]
    mov     eax, SYS_CLOCK_SETTIME
    syscall
    test    rax, rax
    jnz     fail
    lea     rdi, [rip + device]
    mov     esi, O_RDWR
    xor     edx, edx
    mov     eax, SYS_OPEN
    syscall
    test    rax, rax
    js      fail
    mov     ebx, eax
    mov     edi, eax
    lea     rsi, [rip + given + TIME_BYTES]
    mov     edx, SEED_BYTES
    mov     eax, SYS_WRITE
    syscall
    cmp     rax, SEED_BYTES
    jne     fail
    # A source that was never ready has nothing to replace (ENODATA).
    mov     edi, ebx
    mov     esi, RNDRESEEDCRNG
    mov     eax, SYS_IOCTL
    syscall
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

# EAX := the hexadecimal digit at RSI, which moves on; lower case only.
digit:
    movzx   eax, byte ptr [rsi]
    inc     rsi
    sub     eax, '0'
    cmp     eax, 9
    jbe     2f
    sub     eax, 'a' - '0' - 10
    cmp     eax, 10
    jb      fail
    cmp     eax, 15
    ja      fail
2:  ret

device:
    .asciz  "/dev/urandom"
complaint:
    .ascii  "renew: the guest's clock and random source could not be set\n"
    .set complaint_length, . - complaint

    .balign 64
image_end:
    .set given, image_end                   # memory beyond the file
