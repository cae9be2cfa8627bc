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

# Take so many lines of the request as the command.
lines() {
    command=
    count=$1
    while [ "$count" -gt 0 ] && IFS= read -r line <&8; do
        command="$command$line
"
        count=$((count - 1))
    done
}

# serve_run LINES INPUT SECONDS MERGE
serve_run() {
    lines "$1"
    in=/dev/null
    if [ "$2" != 0 ]; then
        in=/swtdx/in
        printf 'MORE\n' >&8
        take "$2" $in
    fi
    # New files each time: what an earlier command left running has the old ones.
    rm -f /swtdx/out /swtdx/err /swtdx/late
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
        { sleep "$3" && : >/swtdx/late && kill -9 "-$child"; } 2>/dev/null 8>&- &
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
    [ ! -e /swtdx/late ] || printf 'LATE\n' >&8
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

# What a command needs whose streams are carried as it runs: the channels of exec.sh, if they are there.  The
# programs that carry them are started once, and wait; a snapshot of the guest then has them.
prepare_streams() {
    ctl=$(channel swtdx.ctl) || return
    exec 9>"$ctl"
    mkfifo /swtdx/sout /swtdx/serr /swtdx/sin
    cat /swtdx/sout >"$(channel swtdx.out)" 8>&- 9>&- &
    pumps=$!
    cat /swtdx/serr >"$(channel swtdx.err)" 8>&- 9>&- &
    pumps="$pumps $!"
    cat "$(channel swtdx.in)" >/swtdx/sin 8>&- 9>&- &
}

# serve_exec LINES ERR IN GETS, the command's lines, and paths of files: as exec.sh does it.
serve_exec() {
    lines "$1"
    count=$4
    rm -f /swtdx/get
    while [ "$count" -gt 0 ] && IFS= read -r line <&8; do
        echo "$line" >>/swtdx/get
        count=$((count - 1))
    done
    in=/dev/null
    [ "$3" = 1 ] && in=/swtdx/sin
    printf 'BEGIN\n' >&9
    if [ "$2" = 1 ]; then
        PATH=$path setsid "$shell" -c "$command" <$in >/swtdx/sout 2>/swtdx/serr 8>&- 9>&-
    else
        : >/swtdx/serr
        PATH=$path setsid "$shell" -c "$command" <$in >/swtdx/sout 2>&1 8>&- 9>&-
    fi
    status=$?
    kill_others $pumps
    wait $pumps
    send_files
    printf 'END %s\n' "$status" >&9
}

# serve PATH SHELL: until the hypervisor wants it to end.
serve() {
    path=$1
    shell=$2
    port=$(control_channel swtdx.agent) || return
    exec 8<>"$port"
    prepare_streams
    printf 'READY\n' >&8
    while read -r verb one two three four <&8; do
        : >/swtdx/why
        case $verb in
        RUN) serve_run "$one" "$two" "$three" "$four" ;;
        PUT) serve_put "$one" "$two" "$three" ;;
        GET) serve_get ;;
        RENEW) /swtdx/renew "$one" 2>/swtdx/why && printf 'DONE\n' >&8 || refuse ;;
        EXEC) serve_exec "$one" "$two" "$three" "$four"; return ;;
        OFF) return ;;
        esac
    done
}
