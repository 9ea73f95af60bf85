#!/bin/sh
# healthy TARGET [ROLE]: whether the service of this container is healthy, as services.common.health
# says. Each time that is a process of Python, so it is asked only 15 s behind its last good answer.
well=/tmp/healthy
if [ -n "$(find $well -newermt '-15 seconds' 2>/dev/null)" ]; then exit 0; fi
rm -f $well
python -m services.common.health "$@" && touch $well
