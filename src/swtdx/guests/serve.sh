# Runs one command after another for the hypervisor, and carries files; sourced by init.sh and by wrap.sh,
# behind exec.sh, whose functions it uses.
#
# Requests and answers go over one channel, the virtio console port swtdx.agent, one request at a time.
# guests/agent.py has the protocol.  What a command leaves running goes on: it writes into a file, not into a
# pipe, so that nobody waits for it.

# Take size bytes of the request into a file.  The hypervisor sends no more until it has its answer.
take() {
    if [ "$1" = 0 ]; then
        : >"$2"
    else
        head -c "$1" <&8 >"$2"
    fi
}

# Answer: why the request was not served.
refuse() {
    IFS= read -r why </swtdx/why || [ -n "$why" ] || why="it failed"
    printf 'FAIL %s\n' "$why" >&8
}

# Answer: a file with its size in front.
give() {
    printf '%s %d\n' "$1" "$2" >&8
    [ "$2" = 0 ] || head -c "$2" "$3" >&8
}

# serve_run LINES INPUT SECONDS MERGE
serve_run() {
    command=
    count=$1
    while [ "$count" -gt 0 ] && IFS= read -r line <&8; do
        command="$command$line
"
        count=$((count - 1))
    done
    in=/dev/null
    if [ "$2" != 0 ]; then
        in=/swtdx/in
        printf 'MORE\n' >&8
        take "$2" $in
    fi
    # New files each time: what an earlier command left running has the old ones.
    rm -f /swtdx/out /swtdx/err
    : >/swtdx/err
    if [ "$4" = 1 ]; then
        PATH=$path setsid "$shell" -c "$command" <$in >/swtdx/out 2>&1 8>&- &
    else
        PATH=$path setsid "$shell" -c "$command" <$in >/swtdx/out 2>/swtdx/err 8>&- &
    fi
    child=$!
    watch=
    if [ "$3" != 0 ]; then
        # Its group is the command's own (setsid).
        { sleep "$3" && kill -9 "-$child"; } 2>/dev/null 8>&- &
        watch=$!
    fi
    wait $child
    status=$?
    if [ -n "$watch" ]; then
        kill $watch 2>/dev/null
        wait $watch 2>/dev/null
    fi
    sizes=$(stat -c %s /swtdx/out /swtdx/err)
    give OUT "${sizes%%
*}" /swtdx/out
    give ERR "${sizes##*
}" /swtdx/err
    printf 'END %d\n' "$status" >&8
}

# serve_put KIND MODE SIZE, and a line with the path
serve_put() {
    IFS= read -r to <&8
    printf 'MORE\n' >&8
    take "$3" /swtdx/put
    if [ "$1" = tree ]; then
        mkdir -p "$to" 2>/swtdx/why && tar -xf /swtdx/put -C "$to" 2>/swtdx/why
    elif [ -d "$to" ]; then
        echo "$to is a folder" >/swtdx/why
        false
    else
        case $to in */*) mkdir -p "${to%/*}/" 2>/swtdx/why ;; esac &&
            cat /swtdx/put 2>/swtdx/why >"$to" &&
            chmod "$2" "$to" 2>/swtdx/why
    fi && printf 'DONE\n' >&8 || refuse
    rm -f /swtdx/put
}

# serve_get, and a line with the path
serve_get() {
    IFS= read -r from <&8
    # Read before it is sent: the size of a file as in /proc only shows then.
    if [ -d "$from" ]; then
        kind=TREE
        tar -cf /swtdx/get -C "$from" . 2>/swtdx/why
    else
        kind=FILE
        cat "$from" 2>/swtdx/why >/swtdx/get
    fi && give $kind "$(stat -c %s /swtdx/get)" /swtdx/get || refuse
    rm -f /swtdx/get
}

# serve PATH SHELL: until the hypervisor wants it to end.
serve() {
    path=$1
    shell=$2
    port=$(control_channel swtdx.agent) || return
    exec 8<>"$port"
    printf 'READY\n' >&8
    while read -r verb one two three four <&8; do
        : >/swtdx/why
        case $verb in
        RUN) serve_run "$one" "$two" "$three" "$four" ;;
        PUT) serve_put "$one" "$two" "$three" ;;
        GET) serve_get ;;
        OFF) return ;;
        esac
    done
}
