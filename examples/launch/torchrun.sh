#!/usr/bin/env bash
# Pretrain on the GPUs of this machine, or of several: run it once on each.
#
#   SLIDES=slides.parquet RUN=runs/a bash torchrun.sh
#   SLIDES=... RUN=... MACHINES=4 HEAD=node1:29500 bash torchrun.sh       # on every one of the four
#   ... bash torchrun.sh --set accumulate=2                               # more options for anlage
#
# Begun again it goes on where it was, on any number of GPUs. Ctrl-C, SIGTERM, SIGUSR1 or a closed
# terminal end it after the step with a checkpoint, however long that takes; it then ends with 130.
# Ctrl-\ ends it at once.
set -euo pipefail

RECIPE=${RECIPE:-tiny}
SLIDES=${SLIDES:?needs SLIDES, a catalogue made by anlage index}
RUN=${RUN:?needs RUN, a folder that every machine sees}
KIND=${KIND:-auto}                 # engine.kind: auto, ddp, fsdp2, hsdp
RANKS=${RANKS:-gpu}                # processes on this machine: a number, or one for each GPU
MACHINES=${MACHINES:-1}
HEAD=${HEAD:-}                     # host:port of one of them, where they meet
JOB=${JOB:-anlage}                 # the same on all of them, another for each job on the same HEAD
WAIT_S=${WAIT_S:-600}              # for machines that are late

if [ "$MACHINES" -gt 1 ]; then
    : "${HEAD:?needs HEAD, host:port of one of the machines}"
    meet=(--nnodes "$MACHINES" --rdzv-backend c10d --rdzv-endpoint "$HEAD" --rdzv-id "$JOB"
        --rdzv-conf "join_timeout=$WAIT_S")
else
    meet=(--standalone)
fi

# torchrun would kill its ranks 30 s after a signal. It is kept from hearing of them, and its ranks
# are told here; they save, and torchrun ends when they have. What is ignored now is ignored by the
# ranks too until they begin to train, and when they are told once more: they are told until they
# end.
trap '' TERM USR1 INT HUP
# "--" ends torchrun's own options, for which it would take --run.
torchrun "${meet[@]}" --nproc-per-node "$RANKS" --signals-to-handle SIGQUIT \
    -m -- anlage pretrain tile --recipe "$RECIPE" --slides "$SLIDES" --run "$RUN" --resume \
    --set "engine.kind=$KIND" "$@" &
agent=$!

stopped=0
stop() {
    [ "$stopped" = 0 ] || return 0
    stopped=1
    tell >/dev/null 2>&1 &
}
tell() {
    trap '' TERM USR1 INT HUP
    while kill -0 "$agent"; do
        # shellcheck disable=SC2046  # one word for each process
        kill -USR1 $(cat "/proc/$agent"/task/*/children) || true
        sleep 1
    done
}
trap stop TERM USR1 INT HUP

code=0
wait "$agent" || code=$?
while kill -0 "$agent" 2>/dev/null; do # a signal ended the wait, not torchrun
    code=0
    wait "$agent" || code=$?
done
if [ "$stopped" = 1 ] && [ "$code" != 0 ]; then
    exit 130
fi
exit "$code"
