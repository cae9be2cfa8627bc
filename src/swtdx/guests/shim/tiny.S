# The tiny guest: for when no kernel can be had.  It says hello over the serial port by
# TDG.VP.VMCALL<Instruction.IO>, shows what the TDX Module says about it, and powers off.

    .intel_syntax noprefix
    .include "abi.inc"
    .include "long_mode.inc"

    .set SERIAL_PORT, 0x3F8
    # Sleep control register of hardware-reduced ACPI: SLP_EN, sleep type 0 (swtdx.devices.power).
    .set SLEEP_PORT, 0x605
    .set SLEEP_VALUE, 0x20

    # TDREPORT_STRUCT (TDX Module ABI): REPORTMACSTRUCT's TEE_INFO_HASH; TDINFO's MRTD.
    .set TEE_INFO_HASH, 80
    .set MRTD, 512 + 16
    .set HASH_BYTES, 48

    # ----------------------------------------------------------------------------------------------
    .section .reset, "ax"
    .code32
    jmp     start32

    .text
    .code32
start32:
    # Only the first vCPU has something to say.
    test    esi, esi
    jz      first
forever:
    pause
    jmp     forever
first:
    BUILD_PAGE_TABLES 0
    ENTER_LONG_MODE start64

    .code64
start64:
    LOAD_DATA_SEGMENTS
    lea     rsp, [rip + stack_top]

    lea     rsi, [rip + hello]
    call    print

    mov     eax, TDG_VP_INFO
    TDCALL
    push    r9                              # vCPU index
    push    r8                              # vCPUs: number, maximum
    push    rdx                             # ATTRIBUTES
    push    rcx                             # GPAW
    .irp    label, label_gpaw, label_attributes, label_vcpus, label_index
    lea     rsi, [rip + \label]
    call    print
    pop     rax
    bswap   rax
    mov     [rip + number], rax
    lea     rsi, [rip + number]
    mov     ecx, 8
    call    print_hex
    .endr

    # REPORTDATA: the greeting's first 64 bytes.
    lea     rsi, [rip + hello]
    lea     rdi, [rip + report_data]
    mov     rdx, rdi
    mov     ecx, 64
    rep movsb
    lea     rcx, [rip + report]
    xor     r8d, r8d
    mov     eax, TDG_MR_REPORT
    TDCALL
    test    rax, rax
    jnz     no_report
    lea     rsi, [rip + label_mrtd]
    call    print
    lea     rsi, [rip + report + MRTD]
    mov     ecx, HASH_BYTES
    call    print_hex
    lea     rsi, [rip + label_info_hash]
    call    print
    lea     rsi, [rip + report + TEE_INFO_HASH]
    mov     ecx, HASH_BYTES
    call    print_hex
    lea     rsi, [rip + goodbye]
    call    print
    jmp     power_off
no_report:
    lea     rsi, [rip + label_no_report]
    call    print
power_off:
    mov     r14d, SLEEP_PORT
    mov     r15d, SLEEP_VALUE
    call    out_byte
    # A hypervisor that does not know that port: wait for nothing, interrupts blocked.
1:  mov     r11d, VMCALL_HLT
    mov     r12d, 1
    call    vmcall
    jmp     1b

    # ----------------------------------------------------------------------------------------------
    # The text at RSI, which ends with NUL.
print:
    lodsb
    test    al, al
    jz      2f
    call    put
    jmp     print
2:  ret

    # ECX bytes from RSI on in hexadecimal, and the end of the line.
print_hex:
    mov     ebx, ecx
3:  lodsb
    mov     ebp, eax
    shr     al, 4
    call    put_digit
    mov     eax, ebp
    call    put_digit
    dec     ebx
    jnz     3b
    mov     al, '\r'
    call    put
    mov     al, '\n'
    jmp     put

put_digit:
    and     al, 15
    add     al, '0'
    cmp     al, '9'
    jbe     put
    add     al, 'a' - '0' - 10

    # The character AL.
put:
    mov     r14d, SERIAL_PORT
    movzx   r15d, al
out_byte:
    mov     r11d, VMCALL_IO
    mov     r12d, 1                         # one byte
    mov     r13d, 1                         # written
vmcall:
    xor     r10d, r10d
    mov     ecx, PASS_R10_TO_R15
    xor     eax, eax                        # TDG.VP.VMCALL
    TDCALL
    ret

    # ----------------------------------------------------------------------------------------------
hello:
    .ascii  "Hello from inside a trust domain!\r\n"
    .ascii  "This is the tiny guest that swtdx itself brings along.\r\n"
    .asciz  "TDG.VP.INFO and TDG.MR.REPORT say:\r\n"
label_gpaw:
    .asciz  "  GPA width      "
label_attributes:
    .asciz  "  ATTRIBUTES     "
label_vcpus:
    .asciz  "  vCPUs max|num  "
label_index:
    .asciz  "  vCPU index     "
label_mrtd:
    .asciz  "  MRTD           "
label_info_hash:
    .asciz  "  TEE_INFO_HASH  "
label_no_report:
    .asciz  "  (no TDREPORT)\r\n"
goodbye:
    .asciz  "Bye.\r\n"

    DEFINE_GDT

    # ----------------------------------------------------------------------------------------------
    .section .scratch, "aw", @nobits
    .balign 1024
report:
    .skip   1024
report_data:                                # aligned to 64 bytes
    .skip   64
number:
    .skip   8
stack:
    .skip   1024
stack_top:
