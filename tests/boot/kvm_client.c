/* A client of KVM's TDX interface (Linux Documentation/virt/kvm/x86/intel-tdx.rst): one TD of 64 KiB whose image is
 * given, wrong arguments on the way, and one ordinary virtual machine.  Each line is a check's name and its result. */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <linux/kvm.h>

#define TDX_VM 5
#define MEMORY_ENCRYPT_OP _IOWR(KVMIO, 0xba, unsigned long)
#define CREATE_GUEST_MEMFD _IOWR(KVMIO, 0xd4, struct guest_memfd)
#define SET_MEMORY_ATTRIBUTES _IOW(KVMIO, 0xd2, struct attributes)
#define SET_REGION2 _IOW(KVMIO, 0x49, struct region2)
#define SEPT_VE_DISABLE (1ull << 28)
#define BASE 0xFFFF0000ull
#define SIZE 0x10000ull

enum { CAPABILITIES, INIT_VM, INIT_VCPU, INIT_MEM_REGION, FINALIZE_VM, GET_CPUID };

struct command { uint32_t id, flags; uint64_t data, hardware_error; };
struct capabilities { uint64_t attributes, xfam, reserved[254]; struct kvm_cpuid2 cpuid; };
struct init_vm { uint64_t attributes, xfam, ids[18], reserved[12]; struct kvm_cpuid2 cpuid; };
struct mem_region { uint64_t source, gpa, pages; };
struct guest_memfd { uint64_t size, flags, reserved[6]; };
struct region2 { uint32_t slot, flags; uint64_t gpa, size, address, offset; uint32_t fd, pad; uint64_t pads[14]; };
struct attributes { uint64_t address, size, attributes, flags; };

static int kvm;

static int op(int fd, uint32_t id, uint32_t flags, void *data) {
  struct command command = { id, flags, (uintptr_t)data, 0 };
  return ioctl(fd, MEMORY_ENCRYPT_OP, &command) ? -errno : 0;
}

static void told(const char *what, long result) { printf("%s %ld\n", what, result); }

static void need(const char *what, long result) {
  told(what, result);
  if (result < 0) exit(1);
}

static void *anonymous(size_t size) {
  return mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

static void run_td(const char *path) {
  static uint64_t space[1 + (sizeof(struct capabilities) + 256 * sizeof(struct kvm_cpuid_entry2)) / 8];
  struct capabilities *capabilities = (void *)space;
  int vm = ioctl(kvm, KVM_CREATE_VM, TDX_VM);
  need("create", vm < 0 ? -errno : 0);
  capabilities->cpuid.nent = 1;
  told("capabilities-too-small", op(vm, CAPABILITIES, 0, capabilities));
  capabilities->cpuid.nent = 256;
  need("capabilities", op(vm, CAPABILITIES, 0, capabilities));
  told("sept-ve-disable", !!(capabilities->attributes & SEPT_VE_DISABLE));
  told("unknown-command", op(vm, 77, 0, 0));
  told("finalize-too-early", op(vm, FINALIZE_VM, 0, 0));
  struct kvm_enable_cap irqchip = { .cap = KVM_CAP_SPLIT_IRQCHIP, .args = { 24 } };
  need("split-irqchip", ioctl(vm, KVM_ENABLE_CAP, &irqchip) ? -errno : 0);

  static uint64_t room[1 + (sizeof(struct init_vm) + 4 * sizeof(struct kvm_cpuid_entry2)) / 8];
  struct init_vm *init = (void *)room;
  init->attributes = ~0ull;
  init->xfam = 3;
  init->cpuid.nent = 1;
  init->cpuid.entries[0].function = 0x80000008;
  init->cpuid.entries[0].eax = 48 << 16;
  told("init-wrong-attributes", op(vm, INIT_VM, 0, init));
  init->attributes = SEPT_VE_DISABLE;
  init->xfam = 1ull << 63;
  told("init-wrong-xfam", op(vm, INIT_VM, 0, init));
  init->xfam = 3;
  need("init", op(vm, INIT_VM, 0, init));
  told("init-twice", op(vm, INIT_VM, 0, init));

  int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
  need("vcpu", vcpu < 0 ? -errno : 0);
  static uint64_t table[1 + (sizeof(struct kvm_cpuid2) + 256 * sizeof(struct kvm_cpuid_entry2)) / 8];
  struct kvm_cpuid2 *cpuid = (void *)table;
  cpuid->nent = 256;
  need("get-cpuid", op(vcpu, GET_CPUID, 0, cpuid));
  for (unsigned entry = 0; entry < cpuid->nent; entry++)
    if (cpuid->entries[entry].function == 1) cpuid->entries[entry].ecx |= 1 << 21; /* x2APIC */
  need("set-cpuid", ioctl(vcpu, KVM_SET_CPUID2, cpuid) ? -errno : 0);
  need("init-vcpu", op(vcpu, INIT_VCPU, 0, (void *)0x1234));

  struct guest_memfd file = { .size = SIZE };
  int fd = ioctl(vm, CREATE_GUEST_MEMFD, &file);
  need("guest-memfd", fd < 0 ? -errno : 0);
  struct region2 region = { .flags = 4, .gpa = BASE, .size = SIZE, .address = (uintptr_t)anonymous(SIZE), .fd = fd };
  need("region", ioctl(vm, SET_REGION2, &region) ? -errno : 0);
  struct attributes private = { BASE, SIZE, 8, 0 };
  need("private", ioctl(vm, SET_MEMORY_ATTRIBUTES, &private) ? -errno : 0);
  struct attributes strange = { BASE, SIZE, 1, 0 };
  told("strange-attributes", ioctl(vm, SET_MEMORY_ATTRIBUTES, &strange) ? -errno : 0);
  char *image = anonymous(SIZE);
  int source = open(path, O_RDONLY);
  need("image", read(source, image, SIZE) == (long)SIZE ? 0 : -1);
  struct mem_region outside = { (uintptr_t)image, 0x10000000, 1 };
  told("region-outside", op(vcpu, INIT_MEM_REGION, 1, &outside));
  struct mem_region all = { (uintptr_t)image, BASE, SIZE / 4096 };
  need("add", op(vcpu, INIT_MEM_REGION, 1, &all));
  need("finalize", op(vm, FINALIZE_VM, 0, 0));
  told("add-too-late", op(vcpu, INIT_MEM_REGION, 1, &all));

  struct kvm_run *run = mmap(0, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
  printf("said ");
  for (;;) {
    if (ioctl(vcpu, KVM_RUN, 0)) {
      if (errno == EINTR || errno == EAGAIN) continue;
      printf("\nrun %d\n", -errno);
      return;
    }
    if (run->exit_reason != KVM_EXIT_IO || run->io.port != 0x3F8) break;
    putchar(*((char *)run + run->io.data_offset));
  }
  printf("\nended %d at-port %x\n", run->exit_reason, run->io.port);
}

static void run_plain(void) {
  int vm = ioctl(kvm, KVM_CREATE_VM, 0);
  need("plain-create", vm < 0 ? -errno : 0);
  struct kvm_userspace_memory_region region = { 0, 0, 0, 0x1000, (uintptr_t)anonymous(0x1000) };
  need("plain-region", ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) ? -errno : 0);
  int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
  need("plain-vcpu", vcpu < 0 ? -errno : 0);
  struct kvm_run *run = mmap(0, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
  told("plain-run", ioctl(vcpu, KVM_RUN, 0) ? -errno : 0);
  printf("plain-exit %u %llu\n", run->exit_reason, (unsigned long long)run->fail_entry.hardware_entry_failure_reason);
}

int main(int count, char **words) {
  setvbuf(stdout, 0, _IOLBF, 0);
  kvm = open("/dev/kvm", O_RDWR);
  need("kvm", kvm < 0 ? -errno : 0);
  run_td(words[count - 1]);
  run_plain();
  return 0;
}
