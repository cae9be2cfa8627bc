#!/bin/sh
# The first process of swtdx's own hosts (PID 1): mounts, modules, then the command of /swtdx/command, whose output
# goes over the second serial line between markers (guests/exec_protocol.py); without one a shell on the console.

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=vt220
bb=/bin/busybox
$bb mount -t proc proc /proc
$bb --install -s /bin
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts 2>/dev/null
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null
ln -s /proc/self/fd /dev/fd 2>/dev/null

# A module a line, with its parameters, in the order in which they depend on each other.
while read -r module parameters; do
    insmod "/lib/modules/$module.ko" $parameters || echo "swtdx: $module was not loaded"
done </lib/modules/order

off() {
    poweroff -f
    # Only a kernel without a way to switch off comes here.
    while :; do sleep 3600; done
}

cd /root
if [ -r /swtdx/command ]; then
    read -r token </swtdx/token
    line=/dev/ttyS1
    stty raw -echo <$line
    exec 8>$line
    printf '\036%s BEGIN\n' "$token" >&8
    # The command may hold anything but NUL; a dot keeps newlines at its end.
    command=$(cat /swtdx/command; echo .)
    sh -c "${command%.}" </dev/null >&8 2>&1 8>&-
    printf '\036%s END %d\n' "$token" $? >&8
    # A serial line is closed when all has left.
    exec 8>&-
else
    setsid cttyhack sh -l
fi
off
