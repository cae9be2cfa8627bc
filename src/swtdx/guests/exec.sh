# Runs the command of an exec job and carries its streams; sourced by init.sh and by wrap.sh.
#
# The hypervisor offers a channel for each stream: virtio console ports with the names swtdx.out,
# swtdx.err, swtdx.in and swtdx.ctl (guests/exec_channels.py has the protocol).  swtdx.err is missing if
# standard error goes where standard output goes, swtdx.in if there is no input.  Where the kernel has no
# such ports, the command's output goes to the console, between markers (guests/exec_protocol.py).

# $base is where proc, sys and dev are mounted for us: empty, or a folder of ours.

# The device of a channel.
channel() {
    for entry in $base/sys/class/virtio-ports/*/name; do
        [ -r "$entry" ] && read -r name <"$entry" || continue
        if [ "$name" = "$1" ]; then
            entry=${entry%/name}
            echo "$base/dev/${entry##*/}"
            return
        fi
    done
    return 1
}

# Whether there is a console (virtio device 3) that offers several ports (feature bit 1).
several_ports() {
    for device in $base/sys/bus/virtio/devices/*; do
        read -r id <"$device/device" && [ "$id" = 0x0003 ] || continue
        read -r features <"$device/features"
        case $features in ?1*) return ;; esac
    done 2>/dev/null
    return 1
}

# Wait for a control channel, which is announced last; the driver names its ports a little after it
# has found the device.
control_channel() {
    several_ports || return 1
    tries=0
    while ! channel "$1"; do
        tries=$((tries + 1))
        [ $tries -lt 200 ] || return 1
        usleep 10000
    done
}

# Kill all but ourselves, PID 1 and the processes given.  Stopped first, none can start others meanwhile.
kill_others() {
    # Not $$, which in a subshell is its parent.
    read -r me rest <$base/proc/self/stat
    kill -STOP -1 2>/dev/null
    for process in $base/proc/[0-9]*; do
        process=${process#$base/proc/}
        case " 1 $me $* " in
        *" $process "*) ;;
        *) kill -9 "$process" 2>/dev/null ;;
        esac
    done
    kill -CONT -1 2>/dev/null
}

# Send the files that the user wants, each as a line with its number and size, and its bytes.
send_files() {
    [ -r /swtdx/get ] || return
    number=0
    while IFS= read -r path; do
        size=0
        from=$path
        [ -f "$path" ] && size=$(stat -L -c %s "$path")
        if [ "$size" = 0 ]; then
            # A folder, or a file whose size only shows when it is read, as in /proc.
            from=/swtdx/file
            if [ -d "$path" ]; then
                tar -cf $from -C "$path" . 2>/swtdx/why
            else
                cat "$path" >$from 2>/swtdx/why
            fi || from=
            [ -n "$from" ] && size=$(stat -c %s $from)
        fi
        if [ -n "$from" ]; then
            printf 'FILE %d %d\n' $number "$size" >&9
            head -c "$size" "$from" >&9
        else
            printf 'NOFILE %d %s\n' $number "$(head -n 1 /swtdx/why)" >&9
        fi
        number=$((number + 1))
    done </swtdx/get
}

# The command, with PATH as given, on its channels.
run_on_channels() {
    exec 9>"$1"
    out=/swtdx/out
    err=/swtdx/err
    in=/dev/null
    # Pipes, because a port can be opened once only, and programs open /dev/stdout.
    mkfifo $out $err
    cat $out >"$(channel swtdx.out)" 9>&- &
    pumps=$!
    if port=$(channel swtdx.err); then
        cat $err >"$port" 9>&- &
        pumps="$pumps $!"
    else
        err=
    fi
    if port=$(channel swtdx.in); then
        in=/swtdx/in
        mkfifo $in
        cat "$port" >$in 9>&- &
    fi
    printf 'BEGIN\n' >&9
    if [ -n "$err" ]; then
        PATH=$2 setsid "$shell" -c "$command" <$in >$out 2>$err 9>&-
    else
        PATH=$2 setsid "$shell" -c "$command" <$in >$out 2>&1 9>&-
    fi
    status=$?
    # What the command left running may write no more; what was written is sent to its end.
    kill_others $pumps
    wait $pumps
    send_files
    printf 'END %s\n' "$status" >&9
}

# The command, with PATH as given, on the console between markers.
run_on_console() {
    console=$base/dev/hvc0
    (exec 3<>$console) 2>/dev/null || console=$base/dev/console
    read -r token </swtdx/token
    # The command's bytes must arrive as they are: no CR before LF, no echo, and of the kernel only
    # emergencies.
    stty raw -echo <$console 2>/dev/null
    printf '\036%s BEGIN\n' "$token" >$console
    PATH=$1 setsid "$shell" -c "$command" </dev/null >$console 2>&1
    status=$?
    kill_others
    printf '\036%s END %s\n' "$token" "$status" >$console
}

# run_command PATH SHELL
run_command() {
    shell=$2
    echo 1 >$base/proc/sys/kernel/printk
    # Line by line, for every program that is started costs a TD about 60 exits; the last may have no end.
    command=
    while IFS= read -r line; do
        command="$command$line
"
    done </swtdx/command
    command=$command$line
    if control=$(control_channel swtdx.ctl); then
        run_on_channels "$control" "$1"
    else
        run_on_console "$1"
    fi
}
