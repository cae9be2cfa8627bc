# The shim: the first code of a TD that boots a Linux kernel directly.
#
# The hypervisor has placed kernel, initrd, command line and the rest in *shared* memory, where it can
# change them at any time.  The shim
#
#   1. enters 64-bit mode,
#   2. accepts the TD's memory,
#   3. copies each of those pieces into private memory while hashing the bytes that it stores,
#   4. compares each hash with the one in the boot information page, which was measured into MRTD,
#   5. extends the hash into an RTMR and writes it into an event log,
#   6. enters the kernel by Linux's 64-bit boot protocol.
#
# Anything unexpected ends in TDG.VP.VMCALL<ReportFatalError> with a message.  There is no interrupt
# descriptor table: an exception is a triple fault, which ends the TD too.
#
# Trusted: this image, the boot information page, the registers of the initial state.  Not trusted: the
# contents of every other page, and all that a TDCALL brings back from the hypervisor.

    .intel_syntax noprefix
    .include "abi.inc"
    .include "long_mode.inc"
    .include "sha384.inc"

    # The boot information page (guests/boot_info.py writes it).
    .set INFO_MAGIC, 0
    .set INFO_RANGES, 8                     # number of RAM ranges, 32 bits
    .set INFO_LOADS, 12                     # number of loads, 32 bits
    .set INFO_ENTRY, 16                     # where the kernel's 64-bit code starts
    .set INFO_BOOT_PARAMS, 24
    .set INFO_LOG, 32                       # event log: address, and bytes
    .set INFO_LOG_BYTES, 40
    .set INFO_RANGE_TABLE, 64               # base, bytes
    .set RANGE_BYTES, 16
    .set INFO_LOAD_TABLE, 128
    # A load: something to be copied from shared to private memory.
    .set LOAD_SOURCE, 0                     # GPA without the shared bit
    .set LOAD_TARGET, 8
    .set LOAD_BYTES, 16
    .set LOAD_RTMR, 24                      # 0..3, 32 bits
    .set LOAD_EVENT_TYPE, 28                # 32 bits
    .set LOAD_NAME, 32                      # 16 bytes, for messages
    .set LOAD_DIGEST, 48                    # SHA-384
    .set LOAD_EVENT_CONTENT, 96             # 1: the event's data ends with the content; 32 bits
    .set LOAD_EVENT_BYTES, 100              # of the event's own data, 32 bits
    .set LOAD_EVENT, 104                    # the event's own data, up to 88 bytes
    .set LOAD_ENTRY_BYTES, 192

    .set INFO_MAGIC_VALUE, 0x3169627864747773   # "swtdxbi1"

    # Mailbox of the ACPI multiprocessor wakeup structure (ACPI 6.5, section 5.2.12.19).
    .set MAILBOX_COMMAND, 0
    .set MAILBOX_APIC_ID, 4
    .set MAILBOX_VECTOR, 8
    .set MAILBOX_WAKEUP, 1

    # The event log (TCG PC Client Platform Firmware Profile, sections 10.2 and 10.4.5).
    .set EV_NO_ACTION, 3
    .set TPM_ALG_SHA384, 0x000C
    .set DIGEST_BYTES, 48

    .set PAGE_2M, 1 << 21
    .set PAGE_4K, 1 << 12

    # ----------------------------------------------------------------------------------------------
    .section .reset, "ax"
    .code32
    jmp     start32

    .text
    .code32
start32:
    test    esi, esi
    jnz     wait_for_tables
    BUILD_PAGE_TABLES 1                     # and clear the mailbox, one page in front of them
    mov     dword ptr [tables_ready], 1
to_long_mode:
    ENTER_LONG_MODE start64

    # Other vCPUs share the first one's page tables.  Its flag lies in a measured page and is 0 at first.
wait_for_tables:
    pause
    cmp     dword ptr [tables_ready], 0
    je      wait_for_tables
    jmp     to_long_mode

    # ----------------------------------------------------------------------------------------------
    .code64
start64:
    LOAD_DATA_SEGMENTS
    test    esi, esi
    jnz     park
    lea     rsp, [rip + stack_top]

    lea     rbx, [rip + boot_info]
    movabs  rax, INFO_MAGIC_VALUE
    cmp     [rbx + INFO_MAGIC], rax
    lea     rsi, [rip + text_no_info]
    lea     rdi, [rip + text_nothing]
    jne     fatal

    call    accept_memory
    call    start_log
    call    load_everything

    # The 64-bit boot protocol: RSI = boot_params, interrupts off, flat segments, identity mapping.
    lea     rbx, [rip + boot_info]
    mov     rsi, [rbx + INFO_BOOT_PARAMS]
    mov     rax, [rbx + INFO_ENTRY]
    xor     ebx, ebx
    xor     edi, edi
    xor     ebp, ebp
    cld
    cli
    jmp     rax

    # ----------------------------------------------------------------------------------------------
    # Other vCPUs wait here, in 64-bit mode with identity mapping, until the kernel calls them by the
    # ACPI mailbox.  A vCPU's APIC id is its index, which is in ESI.
park:
    lea     rbx, [rip + mailbox]
1:  pause
    cmp     word ptr [rbx + MAILBOX_COMMAND], MAILBOX_WAKEUP
    jne     1b
    cmp     [rbx + MAILBOX_APIC_ID], esi
    jne     1b
    mov     rax, [rbx + MAILBOX_VECTOR]
    mov     word ptr [rbx + MAILBOX_COMMAND], 0
    jmp     rax

    # ----------------------------------------------------------------------------------------------
    # Accept every RAM range, in steps of 2 MiB where they fit.  A page that is already accepted was
    # put there behind our back.
accept_memory:
    lea     rbx, [rip + boot_info]
    mov     ebp, [rbx + INFO_RANGES]
    add     rbx, INFO_RANGE_TABLE
1:  dec     ebp
    js      9f
    mov     r12, [rbx]                      # next page
    mov     r13, [rbx + 8]                  # bytes left
    add     rbx, RANGE_BYTES
2:  test    r13, r13
    jz      1b
    test    r12, PAGE_2M - 1
    jnz     4f
    cmp     r13, PAGE_2M
    jb      4f
    lea     rcx, [r12 + 1]                  # level 1
    mov     r14d, PAGE_2M
    call    accept
    test    eax, eax
    jz      3f
    cmp     eax, PAGE_SIZE_MISMATCH
    jne     not_accepted
    # The hypervisor maps this region in small pages.
    mov     r15d, PAGE_2M / PAGE_4K
5:  mov     rcx, r12
    mov     r14d, PAGE_4K
    call    accept
    test    eax, eax
    jnz     not_accepted
    add     r12, r14
    sub     r13, r14
    dec     r15d
    jnz     5b
    jmp     2b
4:  mov     rcx, r12
    mov     r14d, PAGE_4K
    call    accept
    test    eax, eax
    jnz     not_accepted
3:  add     r12, r14
    sub     r13, r14
    jmp     2b
9:  ret

    # RCX = GPA | level; EAX := upper half of the status.
accept:
    mov     eax, TDG_MEM_PAGE_ACCEPT
    TDCALL
    shr     rax, 32
    cmp     eax, OPERAND_BUSY
    je      accept
    ret

not_accepted:
    lea     rsi, [rip + text_accepted_before]
    cmp     eax, PAGE_ALREADY_ACCEPTED
    je      1f
    lea     rsi, [rip + text_not_accepted]
1:  mov     rax, r12
    call    to_hex
    lea     rdi, [rip + hex_digits]
    jmp     fatal

    # ----------------------------------------------------------------------------------------------
    # The event log starts with the record that names its format; what is not used holds 0xFF.
start_log:
    lea     rbx, [rip + boot_info]
    mov     rdi, [rbx + INFO_LOG]
    mov     rcx, [rbx + INFO_LOG_BYTES]
    mov     eax, 0xFF
    rep stosb
    mov     rdi, [rbx + INFO_LOG]
    lea     rsi, [rip + log_header]
    mov     ecx, offset log_header_end - log_header
    rep movsb
    mov     [rip + log_end], rdi
    ret

    # ----------------------------------------------------------------------------------------------
load_everything:
    lea     rbx, [rip + boot_info]
    mov     eax, [rbx + INFO_LOADS]
    mov     [rip + loads_left], eax
    add     rbx, INFO_LOAD_TABLE
    mov     [rip + load], rbx
1:  sub     dword ptr [rip + loads_left], 1
    jc      9f
    mov     rbx, [rip + load]
    movabs  rsi, SHARED_WINDOW
    add     rsi, [rbx + LOAD_SOURCE]
    mov     rdi, [rbx + LOAD_TARGET]
    mov     rdx, [rbx + LOAD_BYTES]
    call    copy_and_hash

    mov     rbx, [rip + load]
    lea     rsi, [rip + digest]
    lea     rdi, [rbx + LOAD_DIGEST]
    mov     ecx, DIGEST_BYTES / 8
    repe cmpsq
    lea     rsi, [rip + text_differs]
    lea     rdi, [rbx + LOAD_NAME]
    jne     fatal

2:  lea     rcx, [rip + digest]
    mov     edx, [rbx + LOAD_RTMR]
    mov     eax, TDG_MR_RTMR_EXTEND
    TDCALL
    shr     rax, 32
    cmp     eax, OPERAND_BUSY
    je      2b
    test    eax, eax
    lea     rsi, [rip + text_no_rtmr]
    lea     rdi, [rbx + LOAD_NAME]
    jnz     fatal

    call    log_event
    add     qword ptr [rip + load], LOAD_ENTRY_BYTES
    jmp     1b
9:  ret

    # One record: RBX = the load, digest = its hash.
log_event:
    mov     rdi, [rip + log_end]
    mov     eax, [rbx + LOAD_RTMR]
    inc     eax                             # measurement register index: 0 is MRTD
    stosd
    mov     eax, [rbx + LOAD_EVENT_TYPE]
    stosd
    mov     eax, 1                          # one digest
    stosd
    mov     eax, TPM_ALG_SHA384
    stosw
    lea     rsi, [rip + digest]
    mov     ecx, DIGEST_BYTES
    rep movsb
    mov     eax, [rbx + LOAD_EVENT_BYTES]
    cmp     dword ptr [rbx + LOAD_EVENT_CONTENT], 0
    je      1f
    add     eax, [rbx + LOAD_BYTES]
1:  stosd
    lea     rsi, [rbx + LOAD_EVENT]
    mov     ecx, [rbx + LOAD_EVENT_BYTES]
    rep movsb
    cmp     dword ptr [rbx + LOAD_EVENT_CONTENT], 0
    je      2f
    mov     rsi, [rbx + LOAD_TARGET]
    mov     rcx, [rbx + LOAD_BYTES]
    rep movsb
2:  mov     [rip + log_end], rdi
    ret

    # ----------------------------------------------------------------------------------------------
    # Copy RDX bytes from RSI to RDI; digest := SHA-384 of what was stored.
copy_and_hash:
    mov     [rip + total], rdx
    mov     rax, rdx
    and     rax, -128
    add     rax, rsi
    mov     [rip + blocks_end], rax
    SHA384_INITIAL_STATE
    call    save_state
1:  cmp     rsi, [rip + blocks_end]
    je      2f
    call    block
    jmp     1b

    # What is left over goes to its place first; the last blocks are made of the private copy.
2:  mov     ecx, [rip + total]
    and     ecx, 127
    mov     ebx, ecx
    rep movsb
    mov     rsi, rdi
    sub     rsi, rbx
    lea     rdi, [rip + last_blocks]
    mov     ecx, ebx
    rep movsb
    mov     al, 0x80
    stosb
    mov     ecx, 255
    sub     ecx, ebx
    xor     eax, eax
    rep stosb
    # The length in bits, 128 bits of which the upper 64 stay 0, ends the first block or the second.
    mov     rax, [rip + total]
    shl     rax, 3
    bswap   rax
    lea     rsi, [rip + last_blocks]
    mov     [rsi + 248], rax
    lea     rdx, [rsi + 256]
    cmp     ebx, 112
    jae     3f
    mov     [rsi + 120], rax
    lea     rdx, [rsi + 128]
3:  mov     [rip + blocks_end], rdx
4:  lea     rdi, [rip + nowhere]
    call    block
    cmp     rsi, [rip + blocks_end]
    jb      4b

    lea     rdi, [rip + digest]
    .irp    word, r8, r9, r10, r11, r12, r13
    mov     rax, \word
    bswap   rax
    stosq
    .endr
    ret

    # One block from RSI to RDI, both of which advance; R8..R15 and `state` are the hash.
    .balign 16
block:
    SHA384_BLOCK
    lea     rax, [rip + state]
    add     r8, [rax]
    add     r9, [rax + 8]
    add     r10, [rax + 16]
    add     r11, [rax + 24]
    add     r12, [rax + 32]
    add     r13, [rax + 40]
    add     r14, [rax + 48]
    add     r15, [rax + 56]
    sub     rsi, -128
    sub     rdi, -128
save_state:
    lea     rax, [rip + state]
    mov     [rax], r8
    mov     [rax + 8], r9
    mov     [rax + 16], r10
    mov     [rax + 24], r11
    mov     [rax + 32], r12
    mov     [rax + 40], r13
    mov     [rax + 48], r14
    mov     [rax + 56], r15
    ret

    # ----------------------------------------------------------------------------------------------
    # hex_digits := RAX as 16 hexadecimal digits.
to_hex:
    lea     rdi, [rip + hex_digits]
    mov     ecx, 16
1:  rol     rax, 4
    mov     edx, eax
    and     edx, 15
    cmp     edx, 10
    jb      2f
    add     edx, 'a' - '0' - 10
2:  add     edx, '0'
    mov     [rdi], dl
    inc     rdi
    dec     ecx
    jnz     1b
    ret

    # The end: RSI = text that ends with NUL, RDI = 16 more characters.  The message of 64 bytes goes
    # out in registers, in the order of the GHCI.
fatal:
    mov     rbx, rdi
    lea     rdi, [rip + message]
    mov     ecx, 80 / 8
    xor     eax, eax
    rep stosq
    lea     rdi, [rip + message]
1:  lodsb
    test    al, al
    jz      2f
    stosb
    jmp     1b
2:  mov     rsi, rbx
    mov     ecx, 16
    rep movsb
3:  lea     rax, [rip + message]
    mov     r14, [rax]
    mov     r15, [rax + 8]
    mov     rbx, [rax + 16]
    mov     rdi, [rax + 24]
    mov     rsi, [rax + 32]
    mov     r8, [rax + 40]
    mov     r9, [rax + 48]
    mov     rdx, [rax + 56]
    xor     r10d, r10d
    mov     r11d, VMCALL_REPORT_FATAL_ERROR
    xor     r12d, r12d                      # no page with more text
    xor     r13d, r13d
    mov     ecx, PASS_MESSAGE
    xor     eax, eax                        # TDG.VP.VMCALL
    TDCALL
    jmp     3b                              # a hypervisor that lets us go on is told again

    # ----------------------------------------------------------------------------------------------
    # At most 48 characters, then 16 of detail.
text_no_info:
    .asciz  "swtdx shim: no boot information at 0xFFFF5000"
text_nothing:
    .fill   16, 1, 0
text_accepted_before:
    .asciz  "swtdx shim: page was accepted before us: "
text_not_accepted:
    .asciz  "swtdx shim: page cannot be accepted: "
text_differs:
    .asciz  "swtdx shim: not what was measured: "
text_no_rtmr:
    .asciz  "swtdx shim: cannot extend an RTMR for: "

    # TCG_PCR_EVENT holding TCG_EfiSpecIDEvent: this log is crypto-agile and carries SHA-384 only.
log_header:
    .long   1, EV_NO_ACTION
    .fill   20, 1, 0
    .long   spec_id_end - spec_id
spec_id:
    .asciz  "Spec ID Event03"
    .long   0                               # platform class: client
    .byte   0, 2, 0, 2                      # version 2.00, errata 0, UINTN of 64 bits
    .long   1
    .word   TPM_ALG_SHA384, DIGEST_BYTES
    .byte   0                               # no vendor information
spec_id_end:
log_header_end:

    DEFINE_GDT

    .balign 4
tables_ready:
    .long   0

    # ----------------------------------------------------------------------------------------------
    .section .scratch, "aw", @nobits
    .balign 64
digest:                                     # TDG.MR.RTMR.EXTEND wants it aligned to 64 bytes
    .skip   64
state:
    .skip   64
last_blocks:
    .skip   256
nowhere:
    .skip   256
message:
    .skip   80
hex_digits:
    .skip   16
total:
    .skip   8
blocks_end:
    .skip   8
load:
    .skip   8
log_end:
    .skip   8
loads_left:
    .skip   8
stack:
    .skip   1024
stack_top:
