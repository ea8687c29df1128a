# The fault campaign: a copy of the program with faults inside, and a library that makes file operations fail.
# Built for the tests that need them.
EXTRA_PROGRAMS += tests/faults/saker
tests_faults_saker_SOURCES = src/main.c tests/faults/inject.c
tests_faults_saker_LDFLAGS = $(AM_LDFLAGS) -Wl,--wrap=sk_engine_step
tests/faults/shim.so: tests/faults/shim.c
	@$(MKDIR_P) tests/faults
	$(AM_V_CC)$(CC) -std=gnu11 $(CFLAGS) -fno-sanitize=all -shared -fPIC -o $@ $(srcdir)/tests/faults/shim.c -ldl
EXTRA_DIST += tests/faults/shim.c tests/faults/campaign.sh
CLEANFILES += tests/faults/saker$(EXEEXT) tests/faults/shim.so
dist_check_SCRIPTS += tests/watch.sh tests/faults.sh
# 200 launched faults with a table of what came of them: ten minutes. SEED=N draws others.
SEED = 1
check-launched-faults: saker$(EXEEXT) tests/faults/saker$(EXEEXT) tests/faults/shim.so
	$(AM_TESTS_ENVIRONMENT) TEST_TIMEOUT=5400 bash $(srcdir)/tests/mpirun.sh $(srcdir)/tests/faults/campaign.sh 200 $(SEED)
.PHONY: check-launched-faults
tests/watch.log tests/faults.log: saker$(EXEEXT) tests/faults/saker$(EXEEXT) tests/faults/shim.so
