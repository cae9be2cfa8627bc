# The engine's stub: what a QEMU processor runs instead of a BIOS.
#
# Each QEMU processor plays one logical processor of the simulated machine.  The stub brings it to
# long mode, then waits at a mailbox for Python's commands; its main one is RUN, "do a VM entry with
# this context".  It plays the microcode of VM entry and VM exit, nothing else: it knows no TDX.
#
# The image is a 64 KiB ROM at 0xF0000 (and at 4 GiB - 64 KiB), started at the reset vector.  Python
# has filled the page tables, mailboxes and stacks in the engine's own memory (layout.py) before
# QEMU starts.  Offsets below are declared a second time in layout.py; a test compares the two.
#
# Assembled with ROOT defined it is the stub of machines on which an operating system runs in VMX root
# operation (root_stub.bin).  Local APIC, interrupts and timer are then that system's: here they stay off, but
# for TDs, whose VMRUN they end, and at ACK, which takes one on behalf of the processor.  Python wakes and
# kicks by NMI.

        .intel_syntax noprefix

        # Where things are (physical = linear addresses; layout.py)
        .equ    PML4,           0x00021000
        .equ    MAILBOX,        0x00040000      # + 4096 * processor
        .equ    HOST_SAVE,      0x00060000      # + 4096 * processor
        .equ    STACK,          0x00080000      # + 1024 * processor (grows down from the end)
        .equ    NUM_CPUS,       0x00020000      # u32, written by Python
        .equ    NEXT_CPU,       0x00020004      # u32, processors that have arrived
        .equ    XCR0_ALL,       0x00020008      # u64, every XCR0 bit this QEMU knows (from CPUID)
        .equ    LAPIC,          0xFEE00000

        # Mailbox fields
        .equ    MB_SEQ,         0x00            # u32 command number, written by Python last
        .equ    MB_DONE,        0x04            # u32 last command carried out
        .equ    MB_CMD,         0x08            # u32 what to do
        .equ    MB_RING,        0x0C            # u32 1: Python sleeps, ring when done
        .equ    MB_ASLEEP,      0x10            # u32 1: the processor halts, wake it by a byte
        .equ    MB_KICKED,      0x14            # u32 an interrupt request arrived
        .equ    MB_TIMER_OP,    0x18            # u32 1: set the local APIC timer by MB_DEADLINE
        .equ    MB_LEAST,       0x1C            # u32 the least initial count, ns: guests get on
        .equ    MB_VMCB,        0x20            # u64
        .equ    MB_GPRS,        0x28            # u64 16 registers, x86 order
        .equ    MB_EXTRA,       0x30            # u64 XSAVE area, debug registers, XCR0, TSC_AUX
        .equ    MB_EXIT_TSC,    0x38            # u64 TSC at the last exit
        .equ    MB_SRC,         0x40            # u64 PROBE: the leaf
        .equ    MB_DST,         0x48            # u64
        .equ    MB_LEN,         0x50            # u64 multiple of 8
        .equ    MB_INDEX,       0x58            # u32 this processor's number
        .equ    MB_TIMER_FIRED, 0x5C            # u32
        .equ    MB_RESULT,      0x60            # u64 CPUID etc.: results of PROBE
        .equ    MB_DR7,         0x70            # u32 DR7 of a guest with breakpoints, else 0
        .equ    MB_LOADING,     0x74            # u32 1: LOAD goes on, and may fail
        .equ    MB_FAILED,      0x78            # u32 1: the last LOAD did, its context cannot be loaded
        .equ    MB_DEADLINE,    0x80            # u64 TSC at which to leave the guest, 0: never
        .equ    MB_SCALE,       0x88            # u64 nanoseconds of a TSC tick, times 2^32
        .equ    MB_CR4,         0x90            # u64 our CR4
        .equ    MB_SPIN,        0x98            # u32 how often to poll before sleeping
        .equ    MB_PROBE_TSC,   0xA0            # u64 TSC at the last PROBE
        .equ    MB_OWED,        0xA8            # u32 1: an NMI of Python's is on its way
        .equ    MB_NMIS,        0xAC            # u32 NMIs that were not Python's
        .equ    MB_VECTOR,      0xB0            # u32 ACK: the vector that was taken, 0: none
        .equ    MB_LOAD_FIRST,  0xB4            # u32 1: RUN loads the context's state first
        .equ    MB_OLD_VMCB,    0xB8            # u64 RUN saves the state to this context first, 0: to none
        .equ    MB_OLD_EXTRA,   0xC0            # u64

        .equ    STUB_FAULT,     0xDEAD          # in MB_RESULT: an exception in the stub

        .equ    CMD_RUN,        1
        .equ    CMD_SAVE,       2
        .equ    CMD_LOAD,       3
        .equ    CMD_REWRITE,    4
        .equ    CMD_PROBE,      5
        .equ    CMD_ACK,        6
        .equ    CMD_EOI,        7

        .equ    DR7_OFF,        0x400           # DR7 without breakpoints

        # Context extra page
        .equ    EX_XSAVE,       0x000           # up to 0xC00 bytes
        .equ    EX_XCR0,        0xF00
        .equ    EX_TSC_AUX,     0xF08
        .equ    EX_DR0,         0xF10
        .equ    EX_STEP,        0xF30           # u32 1: leave the guest as soon as its event is delivered

        # VMCB fields
        .equ    VMCB_EXITCODE,  0x70
        .equ    VMCB_CR4,       0x548
        .equ    VMCB_RSP,       0x5D8
        .equ    VMCB_RAX,       0x5F8

        .equ    EXIT_INTR,      0x60
        .equ    EXIT_NMI,       0x61

        # CR4: what the stub needs, and the bits whose change makes QEMU flush the TLB
        .equ    CR4_OURS,       0x40620         # OSXSAVE | OSXMMEXCPT | OSFXSR | PAE
        .equ    CR4_FLUSHING,   0x3000B0        # SMAP | SMEP | PGE | PAE | PSE

        .equ    VEC_TIMER,      0x40
        .equ    VEC_IPI,        0x41
        .equ    VEC_WAKE,       0x42
        .equ    VEC_SPURIOUS,   0x4F
        .equ    DOORBELL,       0x0E9

        .section .text
        .globl  _start

# ---------------------------------------------------------------- 16 bit
# From the reset vector, and from SIPI with vector 0xF0 (CS:IP = F000:0000) for the others.
        .code16
_start:
        cli
        cld
        lgdt    cs:[gdt_ptr - 0xF0000]
        mov     eax, cr0
        or      al, 1
        mov     cr0, eax
        .byte   0x66, 0xEA                      # ljmpl $8, $enter32
        .long   enter32
        .word   0x08

# ---------------------------------------------------------------- 32 bit
        .code32
enter32:
        mov     ax, 0x10
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     eax, cr4
        or      eax, CR4_OURS
        mov     cr4, eax
        mov     eax, PML4
        mov     cr3, eax
        mov     ecx, 0xC0000080
        rdmsr
        or      eax, 0x1900                     # SVME | NXE | LME
        wrmsr
        mov     eax, 0x80010033                 # PG | WP | NE | ET | MP | PE
        mov     cr0, eax
        .byte   0xEA                            # ljmp $0x18, $enter64
        .long   enter64
        .word   0x18

# ---------------------------------------------------------------- 64 bit
        .code64
enter64:
        xor     eax, eax
        mov     ds, eax
        mov     es, eax
        mov     ss, eax
        lidt    [idt_ptr]
        # Which processor am I?  The bootstrap processor is number 0; others take a ticket, then
        # use their APIC id, which QEMU makes equal to the processor's number.
        mov     ebx, LAPIC
        mov     ebp, [rbx + 0x20]
        shr     ebp, 24                         # EBP: APIC id = number
        mov     r12d, ebp
        shl     r12d, 12
        add     r12d, MAILBOX                   # R12: mailbox
        mov     eax, ebp
        shl     eax, 10
        lea     rsp, [rax + STACK + 1024]
        mov     [r12 + MB_INDEX], ebp
        mov     rax, cr4
        mov     [r12 + MB_CR4], rax
        .ifndef ROOT
        # Local APIC: on, timer one-shot at divide 1, spurious vector
        mov     dword ptr [rbx + 0xF0], 0x100 | VEC_SPURIOUS
        mov     dword ptr [rbx + 0x3E0], 0x0B
        mov     dword ptr [rbx + 0x320], VEC_TIMER
        mov     dword ptr [rbx + 0x380], 0
        mov     dword ptr [rbx + 0x80], 0
        .endif
        # VM_HSAVE_PA
        mov     eax, ebp
        shl     eax, 12
        add     eax, HOST_SAVE
        xor     edx, edx
        mov     ecx, 0xC0010117
        wrmsr
        # Every state component this QEMU knows
        mov     eax, 0x0D
        xor     ecx, ecx
        cpuid
        mov     [XCR0_ALL], eax
        mov     [XCR0_ALL + 4], edx
        call    xcr0_all
        test    ebp, ebp
        jnz     arrived
        call    bsp_setup
arrived:
        lock inc dword ptr [NEXT_CPU]
        .ifndef ROOT
        sti
        .endif
        mov     r13d, [r12 + MB_SEQ]            # R13: last command seen
        mov     [r12 + MB_DONE], r13d
        jmp     wait

# Set XCR0 to everything.  Clobbers RAX, RCX, RDX.
xcr0_all:
        mov     eax, [XCR0_ALL]
        mov     edx, [XCR0_ALL + 4]
        xor     ecx, ecx
        xsetbv
        ret

# The bootstrap processor starts the others: INIT, SIPI to all but self.
bsp_setup:
        mov     ebx, LAPIC
        cmp     dword ptr [NUM_CPUS], 1
        je      1f
        mov     dword ptr [rbx + 0x310], 0
        mov     dword ptr [rbx + 0x300], 0x000C4500
        # A processor takes INIT in its own thread: repeat SIPI until all have arrived (the count
        # lacks ourselves).
        mov     edx, [NUM_CPUS]
        dec     edx
2:      mov     dword ptr [rbx + 0x300], 0x000C46F0
        mov     ecx, 100000
3:      dec     ecx
        jnz     3b
        cmp     [NEXT_CPU], edx
        jb      2b
1:      ret

# ---------------------------------------------------------------- the mailbox
# R12 mailbox, R13 last command; both are kept in the mailbox's stack frame over a VM entry.
wait:
        # Python says how long to poll: an answer that it is working on is there soon, and to be woken costs
        # more than most answers do; a processor that has nothing to do sleeps at once.  (No RDTSC here: all
        # of QEMU's threads take one lock for it.)
        xor     ecx, ecx
3:      mov     eax, [r12 + MB_SEQ]
        cmp     eax, r13d
        jne     command
        inc     ecx
        cmp     ecx, [r12 + MB_SPIN]
        jb      3b
        # Sleep.  XCHG is a full barrier: either we see the command, or Python sees us asleep.
        .ifndef ROOT
        cli
        mov     eax, 1
        xchg    [r12 + MB_ASLEEP], eax
        mov     eax, [r12 + MB_SEQ]
        cmp     eax, r13d
        jne     4f
        sti
        hlt
        cli
4:      xor     eax, eax
        xchg    [r12 + MB_ASLEEP], eax
        sti
        jmp     wait
        .else
        mov     eax, 1
        xchg    [r12 + MB_ASLEEP], eax
sleep:                                          # an NMI that comes from here to the HLT leads to awake
        mov     eax, [r12 + MB_SEQ]
        cmp     eax, r13d
        jne     awake
        hlt
awake:  xor     eax, eax
        xchg    [r12 + MB_ASLEEP], eax
        jmp     wait
        .endif

command:
        mov     r13d, eax
        mov     eax, [r12 + MB_CMD]
        cmp     eax, CMD_RUN
        je      run
        cmp     eax, CMD_SAVE
        je      save
        cmp     eax, CMD_LOAD
        je      load
        cmp     eax, CMD_REWRITE
        je      rewrite
        cmp     eax, CMD_PROBE
        je      probe
        .ifdef  ROOT
        cmp     eax, CMD_ACK
        je      ack
        cmp     eax, CMD_EOI
        je      end_of_interrupt
        .endif
done:
        mov     eax, r13d
        xchg    [r12 + MB_DONE], eax            # barrier: the ring flag is read after
        cmp     dword ptr [r12 + MB_RING], 0
        je      wait
        mov     dword ptr [r12 + MB_RING], 0
        mov     al, [r12 + MB_INDEX]
        mov     dx, DOORBELL
        add     dl, al                          # one bell a processor
        out     dx, al
        jmp     wait

# ---- RUN: one VM entry
run:
        .ifndef ROOT
        cmp     dword ptr [r12 + MB_TIMER_OP], 0
        je      5f
        mov     dword ptr [r12 + MB_TIMER_OP], 0
        mov     rsi, [r12 + MB_DEADLINE]
        xor     eax, eax
        test    rsi, rsi
        jz      4f
        rdtsc
        shl     rdx, 32
        or      rax, rdx
        sub     rsi, rax
        mov     eax, [r12 + MB_LEAST]
        jbe     4f                              # it has passed
        mov     rax, rsi
        mul     qword ptr [r12 + MB_SCALE]
        shrd    rax, rdx, 32                    # nanoseconds, 32 bits of them at most
        mov     edx, 0xFFFFFFFF
        cmp     rax, rdx
        cmova   rax, rdx
        mov     edx, [r12 + MB_LEAST]
        cmp     eax, edx
        cmovb   eax, edx
4:      mov     ecx, LAPIC
        mov     [rcx + 0x380], eax
5:
        .else
        # From one context to another in one command.
        mov     rax, [r12 + MB_OLD_VMCB]
        test    rax, rax
        jz      1f
        mov     rdi, [r12 + MB_OLD_EXTRA]
        call    save_state
        mov     qword ptr [r12 + MB_OLD_VMCB], 0
1:      cmp     dword ptr [r12 + MB_LOAD_FIRST], 0
        je      2f
        mov     dword ptr [r12 + MB_LOAD_FIRST], 0
        call    load_state
2:
        .endif
        mov     rdx, [r12 + MB_VMCB]
        # QEMU flushes its TLB for each change of these bits, so ours are the guest's.
        mov     rax, [rdx + VMCB_CR4]
        and     eax, CR4_FLUSHING
        or      eax, CR4_OURS
        cmp     rax, [r12 + MB_CR4]
        je      6f
        mov     [r12 + MB_CR4], rax
        mov     cr4, rax
6:      clgi
        cmp     dword ptr [r12 + MB_KICKED], 0
        jne     kicked
        .ifndef ROOT
        cmp     dword ptr [r12 + MB_TIMER_FIRED], 0
        jne     kicked                          # it fired just now, in host mode: tell of it
        .else
        sti                                     # what ends a TD's VMRUN; the root world's own IF decides for it
        .endif
        mov     rax, [r12 + MB_EXTRA]
        cmp     dword ptr [rax + EX_STEP], 0
        je      7f
        # An interrupt that waits is taken when VMRUN has delivered its event, before the handler begins.
        mov     dword ptr [rax + EX_STEP], 0
        .ifndef ROOT
        mov     eax, LAPIC
        mov     dword ptr [rax + 0x300], 0x44000 | VEC_IPI  # to ourselves
        .else
        mov     eax, 1
        xchg    [r12 + MB_OWED], eax
        test    eax, eax
        jnz     7f                              # one is on its way
        mov     eax, LAPIC
        mov     dword ptr [rax + 0x300], 0x44400            # an NMI to ourselves
        .endif
7:      push    r12
        push    r13
        mov     rax, [r12 + MB_GPRS]
        push    rax
        push    rdx
        mov     ecx, [r12 + MB_DR7]
        push    rcx
        mov     rcx, [rax]
        mov     [rdx + VMCB_RAX], rcx
        mov     rcx, [rax + 4*8]
        mov     [rdx + VMCB_RSP], rcx
        mov     rcx, [rax + 1*8]
        mov     rdx, [rax + 2*8]
        mov     rbx, [rax + 3*8]
        mov     rbp, [rax + 5*8]
        mov     rsi, [rax + 6*8]
        mov     rdi, [rax + 7*8]
        mov     r8,  [rax + 8*8]
        mov     r9,  [rax + 9*8]
        mov     r10, [rax + 10*8]
        mov     r11, [rax + 11*8]
        mov     r12, [rax + 12*8]
        mov     r13, [rax + 13*8]
        mov     r14, [rax + 14*8]
        mov     r15, [rax + 15*8]
        # VMRUN and #VMEXIT do not touch the lists that QEMU derives from DR0-3 and DR7, so a guest's
        # breakpoints are put there just before it and taken back just behind it.  In between nothing is
        # touched but this page of code and our stack: no breakpoint lies there (context.py).
        mov     rax, [rsp]
        test    eax, eax
        jz      1f
        mov     dr7, rax
1:      mov     rax, [rsp + 8]
        vmrun   rax
        # RSP and RAX are ours again, the rest is the guest's
        pop     rax
        test    eax, eax
        jz      1f
        mov     eax, DR7_OFF
        mov     dr7, rax
1:      mov     rax, [rsp + 8]
        mov     [rax + 1*8], rcx
        mov     [rax + 2*8], rdx
        mov     [rax + 3*8], rbx
        mov     [rax + 5*8], rbp
        mov     [rax + 6*8], rsi
        mov     [rax + 7*8], rdi
        mov     [rax + 8*8], r8
        mov     [rax + 9*8], r9
        mov     [rax + 10*8], r10
        mov     [rax + 11*8], r11
        mov     [rax + 12*8], r12
        mov     [rax + 13*8], r13
        mov     [rax + 14*8], r14
        mov     [rax + 15*8], r15
        pop     rdx
        mov     rcx, [rdx + VMCB_RAX]
        mov     [rax], rcx
        mov     rcx, [rdx + VMCB_RSP]
        mov     [rax + 4*8], rcx
        pop     rax
        pop     r13
        pop     r12
        rdtsc
        mov     [r12 + MB_EXIT_TSC], eax
        mov     [r12 + MB_EXIT_TSC + 4], edx
        .ifdef  ROOT
        cli
        .endif
        stgi                                    # pending interrupts are taken here
        nop
        jmp     done
kicked:
        mov     rdx, [r12 + MB_VMCB]
        .ifndef ROOT
        mov     qword ptr [rdx + VMCB_EXITCODE], EXIT_INTR
        .else
        mov     qword ptr [rdx + VMCB_EXITCODE], EXIT_NMI
        .endif
        mov     dword ptr [rdx + 0x88], 0       # EXITINTINFO: nothing was being delivered
        rdtsc
        mov     [r12 + MB_EXIT_TSC], eax
        mov     [r12 + MB_EXIT_TSC + 4], edx
        stgi
        nop
        jmp     done

# ---- SAVE: the state that a VM entry and exit leave in the processor, to the context
save:
        mov     rax, [r12 + MB_VMCB]
        mov     rdi, [r12 + MB_EXTRA]
        call    save_state
        jmp     done
save_state:
        vmsave  rax
        xor     ecx, ecx
        xgetbv
        mov     [rdi + EX_XCR0], eax
        mov     [rdi + EX_XCR0 + 4], edx
        call    xcr0_all
        xsave   [rdi + EX_XSAVE]
        mov     eax, [rdi + EX_XCR0]
        mov     edx, [rdi + EX_XCR0 + 4]
        xor     ecx, ecx
        xsetbv
        mov     ecx, 0xC0000103
        rdmsr
        mov     [rdi + EX_TSC_AUX], eax
        ret

# ---- LOAD: the reverse, and DR0-3, which no guest writes itself.  XRSTOR and XSETBV fault where the context
# does not hold what the processor takes: isr_gp.
load:
        call    load_state
        jmp     done
load_state:
        mov     dword ptr [r12 + MB_LOADING], 1
        mov     rax, [r12 + MB_VMCB]
        vmload  rax
        mov     rdi, [r12 + MB_EXTRA]
        call    xcr0_all
        mov     eax, [XCR0_ALL]
        mov     edx, [XCR0_ALL + 4]
        xrstor  [rdi + EX_XSAVE]
        mov     eax, [rdi + EX_XCR0]
        mov     edx, [rdi + EX_XCR0 + 4]
        xor     ecx, ecx
        xsetbv
        mov     eax, [rdi + EX_TSC_AUX]
        xor     edx, edx
        mov     ecx, 0xC0000103
        wrmsr
        mov     rax, [rdi + EX_DR0]
        mov     dr0, rax
        mov     rax, [rdi + EX_DR0 + 8]
        mov     dr1, rax
        mov     rax, [rdi + EX_DR0 + 16]
        mov     dr2, rax
        mov     rax, [rdi + EX_DR0 + 24]
        mov     dr3, rax
        mov     dword ptr [r12 + MB_LOADING], 0
        ret

# ---- REWRITE: write memory onto itself, so that QEMU drops code translated from there.  Locked: guests may
# be writing there meanwhile.
rewrite:
        mov     rdi, [r12 + MB_DST]
        mov     rcx, [r12 + MB_LEN]
        shr     rcx, 3
        jz      done
1:      lock or qword ptr [rdi], 0
        add     rdi, 8
        loop    1b
        jmp     done

# ---- PROBE: CPUID(MB_SRC, MB_DST) to MB_RESULT
probe:
        mov     eax, [r12 + MB_SRC]
        mov     ecx, [r12 + MB_DST]
        cpuid
        mov     [r12 + MB_RESULT], eax
        mov     [r12 + MB_RESULT + 4], ebx
        mov     [r12 + MB_RESULT + 8], ecx
        mov     [r12 + MB_RESULT + 12], edx
        rdtsc
        mov     [r12 + MB_PROBE_TSC], eax
        mov     [r12 + MB_PROBE_TSC + 4], edx
        jmp     done

        .ifdef  ROOT
# ---- ACK: take the highest interrupt that the local APIC has; its vector to MB_VECTOR
ack:
        mov     dword ptr [r12 + MB_VECTOR], 0
        sti
        nop                                     # behind the shadow of STI
        nop
        cli
        jmp     done

# ---- EOI: end the interrupt that ACK has taken
end_of_interrupt:
        mov     eax, LAPIC
        mov     dword ptr [rax + 0xB0], 0
        jmp     done
        .endif

# ---------------------------------------------------------------- interrupts
# They come only while the stub waits or at STGI, always on our stack, never in the guest.
        .ifndef ROOT
isr_timer:
        push    rax
        push    rcx
        call    my_mailbox
        mov     dword ptr [rax + MB_TIMER_FIRED], 1
eoi:    mov     ecx, LAPIC
        mov     dword ptr [rcx + 0xB0], 0
        pop     rcx
        pop     rax
        iretq
isr_wake:
        push    rax
        push    rcx
        jmp     eoi
isr_ipi:
        push    rax
        push    rcx
        call    my_mailbox
        mov     dword ptr [rax + MB_KICKED], 1
        jmp     eoi
isr_none:
        iretq
# RAX := this processor's mailbox, by APIC id
my_mailbox:
        mov     eax, LAPIC
        mov     eax, [rax + 0x20]
        shr     eax, 12
        add     eax, MAILBOX
        ret
        .else
# Each vector has its entry, which pushes the vector: they come only at ACK.
        .balign 16
isr_vectors:
        .set    vec, 0x20
        .rept   0xE0
        .balign 16
        push    vec - 256 * (vec >> 7)
        jmp     isr_any
        .set    vec, vec + 1
        .endr
isr_any:
        push    rax
        call    my_mailbox
        push    rcx
        movzx   ecx, byte ptr [rsp + 16]
        mov     [rax + MB_VECTOR], ecx
        pop     rcx
        pop     rax
        add     rsp, 8
        iretq
# Python's, or the operating system's own.  Both come at STGI when they have ended a VMRUN.
isr_nmi:
        push    rax
        push    rcx
        call    my_mailbox
        xor     ecx, ecx
        xchg    [rax + MB_OWED], ecx
        test    ecx, ecx
        jnz     1f
        inc     dword ptr [rax + MB_NMIS]
1:      mov     ecx, [rsp + 16]                 # RIP
        cmp     ecx, offset sleep
        jb      2f
        cmp     ecx, offset awake
        ja      2f
        mov     qword ptr [rsp + 16], offset awake
2:      pop     rcx
        pop     rax
        iretq
# RAX := this processor's mailbox, by our stack: the local APIC's id is the operating system's to change
my_mailbox:
        mov     eax, esp
        sub     eax, STACK
        shr     eax, 10
        shl     eax, 12
        add     eax, MAILBOX
        ret
        .endif
# #DB: a data breakpoint of a guest was hit by an instruction that then left the guest.  QEMU delivers what
# is left over to us.  The guest will execute the instruction again.
isr_debug:
        iretq
# #GP in LOAD is the context's fault, and the command's result.
isr_gp:
        call    my_mailbox
        cmp     dword ptr [rax + MB_LOADING], 0
        je      1f
        mov     dword ptr [rax + MB_LOADING], 0
        mov     dword ptr [rax + MB_FAILED], 1
        mov     eax, [rax + MB_INDEX]
        shl     eax, 10
        lea     rsp, [rax + STACK + 1024]
        .ifndef ROOT
        sti
        .endif
        jmp     done
1:      pop     rcx                             # the error code
# An exception in the stub is a defect of the engine: leave a mark that Python reports.
isr_fatal:
        call    my_mailbox
        mov     dword ptr [rax + MB_RESULT], STUB_FAULT
        pop     rcx
        mov     [rax + MB_RESULT + 8], rcx
9:      hlt
        jmp     9b

# ---------------------------------------------------------------- tables
        .balign 16
gdt:
        .quad   0
        .quad   0x00CF9B000000FFFF              # 0x08 32-bit code (accessed: the ROM cannot be written)
        .quad   0x00CF93000000FFFF              # 0x10 data
        .quad   0x00AF9B000000FFFF              # 0x18 64-bit code
gdt_ptr:
        .word   gdt_ptr - gdt - 1
        .long   gdt
        .balign 16
        .macro  gate handler
        .word   (\handler - _start)
        .word   0x18
        .byte   0
        .byte   0x8E
        .word   0x000F
        .long   0
        .long   0
        .endm
idt:
        gate    isr_fatal
        gate    isr_debug
        .ifdef  ROOT
        gate    isr_nmi
        .else
        gate    isr_fatal
        .endif
        .rept   10
        gate    isr_fatal
        .endr
        gate    isr_gp
        .ifdef  ROOT
        .rept   0x20 - 14
        gate    isr_fatal
        .endr
        .set    vec, 0
        .rept   0xE0
        gate    (isr_vectors + 16 * vec)
        .set    vec, vec + 1
        .endr
        .else
        .rept   0x40 - 14
        gate    isr_fatal
        .endr
        gate    isr_timer
        gate    isr_ipi
        gate    isr_wake
        .rept   VEC_SPURIOUS - VEC_WAKE
        gate    isr_none
        .endr
        .endif
idt_ptr:
        .word   idt_ptr - idt - 1
        .quad   idt

# Reset vector
        .org    0xFFF0
        .byte   0xEA                            # ljmp $0xF000, $bsp16
        .word   0
        .word   0xF000
        .org    0x10000
