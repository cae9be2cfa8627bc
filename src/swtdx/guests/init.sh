#!/bin/sh
# The first process of swtdx's own guests (PID 1).  What to do comes in /swtdx/, which the hypervisor
# appends to the initrd as a second archive: mode (shell, exec, serve or demo), and what the mode needs.  See
# guests/initramfs.py for the files.

export PATH=/bin HOME=/root
bb=/bin/busybox

# Every program that is started costs a TD about 60 exits (CPUID): few, then, and each does several things.
$bb mount -a -T /lib/swtdx/fstab
$bb --install -s /bin
cp -P /lib/swtdx/dev/* /dev

# Modules in the order in which they depend on each other.
while read -r module; do
    insmod "/lib/modules/$module.ko"
done </lib/modules/order
mount -a -T /lib/swtdx/fstab.late 2>/dev/null
# A guest that suspends itself is woken after a second, but has no work that would gain by it.
mount -o remount,bind,ro /sys/power 2>/dev/null

# Peripherals, of which guests/peripherals.py tells.
if [ -r /swtdx/shares ]; then
    while read -r tag; do
        mkdir -p "/mnt/$tag"
        mount -t virtiofs "$tag" "/mnt/$tag" 2>/dev/null ||
            mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 "$tag" "/mnt/$tag"
    done </swtdx/shares
fi
if [ -r /swtdx/net ]; then
    ifconfig lo up
    ifconfig eth0 up
    udhcpc -i eth0 -n -q -t 5 -T 1 -s /swtdx/net >/dev/null 2>&1
fi

# The virtio console, or whatever console the kernel has where there is none.
console=/dev/hvc0
(exec 3<>$console) 2>/dev/null || console=/dev/console

mode=shell
[ -r /swtdx/mode ] && read -r mode </swtdx/mode

off() {
    # Changing terminal settings waits until all output has left; switching off does not.
    stty -echo <$console 2>/dev/null
    poweroff -f
    # Only a kernel without a way to switch off comes here.
    while :; do sleep 3600; done
}

case $mode in
exec)
    base=
    . /swtdx/exec.sh
    cd /root
    run_command "$PATH" sh
    off
    ;;
serve)
    base=
    . /swtdx/exec.sh
    . /swtdx/serve.sh
    cd /root
    serve "$PATH" sh
    off
    ;;
demo)
    stty -echo <$console 2>/dev/null
    dmesg -n 1
    cd /root
    sh /swtdx/demo </dev/null >$console 2>&1
    off
    ;;
*)
    mkdir -p /dev/pts
    mount -t devpts devpts /dev/pts
    dmesg -n 3
    [ "$TERM" = linux ] && export TERM=vt220
    cd /root
    setsid cttyhack sh -l <$console >$console 2>&1
    off
    ;;
esac
