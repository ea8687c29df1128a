#!/usr/bin/env bash
# A sample of the fault campaign (tests/faults/campaign.sh); `make check-faults` runs 200.
set -u
exec bash "${SAKER_SRCDIR:?}/tests/faults/campaign.sh" 12 2
