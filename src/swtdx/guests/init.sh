#!/bin/sh
# The first process of swtdx's own guests (PID 1).  What to do comes in /swtdx/, which the hypervisor
# appends to the initrd as a second archive: mode (shell, exec or demo), and what the mode needs.  See
# guests/initramfs.py for the files.

export PATH=/bin HOME=/root
bb=/bin/busybox

$bb mount -t proc proc /proc
$bb mount -t sysfs sysfs /sys
$bb mount -t devtmpfs devtmpfs /dev
$bb mount -t tmpfs tmpfs /tmp
$bb --install -s /bin
ln -s /proc/self/fd /dev/fd
for stream in stdin:0 stdout:1 stderr:2; do
    ln -s /proc/self/fd/${stream#*:} /dev/${stream%:*}
done

# Modules in the order in which they depend on each other.
while read -r module; do
    insmod "/lib/modules/$module.ko"
done </lib/modules/order
mount -t configfs configfs /sys/kernel/config 2>/dev/null

# The virtio console, or whatever console the kernel has where there is none.
console=/dev/hvc0
(exec 3<>$console) 2>/dev/null || console=/dev/console

# Nothing here could wake a guest that is suspended, which would look as if it hung.
mount --bind /sys/power /sys/power 2>/dev/null && mount -o remount,bind,ro /sys/power

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
