#!/bin/bash
# SPDX-License-Identifier: MIT
# Containers of podman beside those of a plain `podman run`: with --rm, with a terminal, a service (Quadlet), a pod.
#   start   start them and note what must stay
#   verify  tell whether all of them are the same
#   end     use and end them
# shellcheck disable=SC2016,SC2086,SC2317
set -u
state=/root/kinds
run="podman run --detach --log-driver k8s-file --volume $state:/kinds:ro"
image=localhost/podman-web
program="/usr/bin/python3 -IS /kinds/podman_kinds.py"
bad=0

check() { # what it is; a command
    local what=$1
    shift
    if "$@"; then echo "ok   $what"; else echo "FAIL $what"; bad=1; fi
}

beats() { podman logs "$1" 2>/dev/null | tr -d '\r' | grep "^beat"; }
whole() { beats "$1" | awk -v who="$(cat $state/$1.who)" '$2 != NR || $3 != who {bad = 1} END {exit bad || !NR}'; }
now() { timeout 10 bash -c 'exec 3<>"/dev/tcp/127.0.0.1/$1"; echo >&3; read -r _ who <&3; echo "$who"' - "$1"; }
shown() { systemctl show --value --property "$1" quad; }
wait_for() { for _ in $(seq 100); do "$@" && return; sleep 0.3; done; return 1; }
served() { [ -n "$(now "$1" 2>/dev/null)" ]; }

start() {
    mkdir -p /etc/containers/systemd $state
    cat > /etc/containers/systemd/quad.container <<'U'
[Unit]
Requires=before.service
After=before.service
[Container]
Image=localhost/podman-web
ContainerName=quad
Volume=/usr:/usr:ro
Volume=/root/kinds:/kinds:ro
PublishPort=8090:80
StopTimeout=1
Exec=/usr/bin/python3 -IS /kinds/podman_kinds.py serve
[Service]
Restart=always
[Install]
WantedBy=multi-user.target
U
    cat > /etc/containers/systemd/quadpod.pod <<'U'
[Pod]
PublishPort=8092:80
PodmanArgs=--infra-image localhost/podman-web --volume /usr:/usr:ro "--infra-command=/usr/bin/sleep 99999999"
U
    sed -e 's/^ContainerName=.*/ContainerName=inside\nPod=quadpod.pod/' -e '/^PublishPort/d; /before/d; /^Volume=.usr/d' \
        /etc/containers/systemd/quad.container > /etc/containers/systemd/inside.container
    cat > /etc/systemd/system/before.service <<'U'
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
U
    cat > /etc/systemd/system/after.service <<'U'
[Unit]
Requires=quad.service
After=quad.service
[Service]
ExecStart=/bin/sleep infinity
[Install]
WantedBy=multi-user.target
U
    systemctl daemon-reload
    systemctl enable after.service
    systemctl start after.service inside.service
    $run --volume /usr:/usr:ro --rm --name once $image $program serve
    $run --volume /usr:/usr:ro --tty --interactive --name tty $image $program repeat
    podman pod create --name pod --publish 8091:80 --infra-name infra --infra-image $image \
        --infra-command "/usr/bin/sleep 99999999" --volume /usr:/usr:ro
    $run --pod pod --name server $image $program serve
    $run --pod pod --name client $image $program ask
    check "quad serves" wait_for served 8090
    check "the pod serves" wait_for served 8091
    check "the pod that is a service serves" wait_for served 8092
    for port in 8090 8091 8092; do now $port > $state/$port; done
    for name in once tty server client; do
        check "$name beats" wait_for bash -c "podman logs $name | grep -q beat"
        beats $name | awk 'NR == 1 {print $3}' > $state/$name.who
    done
    shown Type > $state/type
    podman inspect --format '{{.Id}}' quad > $state/quad.id
    [ $bad = 0 ]
}

verify() {
    podman ps --all --pod
    systemctl --no-pager status quad after before | cat
    for name in tty server client; do check "$name is the same, no beat is missing" whole $name; done
    check "once is the same" whole once
    for port in 8090 8091 8092; do check "$port is served by the same" [ "$(now $port)" = "$(cat $state/$port)" ]; done
    check "quad is active" [ "$(shown ActiveState) $(shown SubState)" = "active running" ]
    check "its main process is conmon" grep -qx conmon "/proc/$(shown MainPID)/comm"
    check "its type is $(shown Type)" [ "$(shown Type)" = "$(cat $state/type)" ]
    check "its stop is its own: $(shown ExecStop)" grep -q cidfile <<< "$(shown ExecStop)"
    check "podman shows one quad, the same" [ "$(podman ps --all --no-trunc --quiet --filter name=^quad$)" = "$(cat $state/quad.id)" ]
    check "it is where podman has put it: $(shown ControlGroup)" \
        grep -q . "/sys/fs/cgroup$(shown ControlGroup)/libpod-payload-$(cat $state/quad.id)/cgroup.procs"
    check "its id is in /run" cmp -s <(tr -d '\n' < $state/quad.id) <(tr -d '\n' < /run/quad.cid)
    check "what needs it is active" systemctl --quiet is-active before after
    check "the pod's services are active" systemctl --quiet is-active quadpod-pod inside
    check "no drop-in is left" [ -z "$(shown DropInPaths)" ]
    check "the pod runs" [ "$(podman pod ps --filter name=^pod$ --format '{{.Status}}')" = Running ]
    [ $bad = 0 ]
}

end() {
    check "the terminal is heard" bash -c '(sleep 2; echo hello; sleep 2) | timeout 30 podman attach --sig-proxy=false tty > /dev/null; podman logs tty | grep -q "heard hello /dev/pts/0"'
    podman stop --time 1 once > /dev/null
    check "once is removed" bash -c '! podman container exists once'
    podman kill quad > /dev/null
    other() { local who; who=$(now 8090 2>/dev/null); [ -n "$who" ] && [ "$who" != "$(cat $state/8090)" ]; }
    check "systemd has started quad again" wait_for other
    now 8090 > $state/8090
    check "quad restarts" systemctl restart quad
    check "another one serves" wait_for other
    systemctl stop quad
    check "quad is removed" bash -c '! podman container exists quad'
    systemctl stop quadpod-pod
    check "the pod that was a service is removed" bash -c '! podman container exists inside && ! podman pod exists systemd-quadpod'
    podman pod stop --time 1 pod
    check "the pod has ended" [ "$(podman pod ps --format '{{.Status}}')" = Exited ]
    podman pod rm --force pod
    podman rm --force --time 0 tty
    rm -rf /etc/containers/systemd
    systemctl disable after.service
    systemctl daemon-reload
    [ $bad = 0 ]
}

"$1"
