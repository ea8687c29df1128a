# The fault campaign: a copy of the program with faults inside, and a library that makes file operations fail.
# Built for the tests that need them.
EXTRA_PROGRAMS += tests/faults/saker
tests_faults_saker_SOURCES = src/main.c tests/faults/inject.c
tests_faults_saker_LDFLAGS = $(AM_LDFLAGS) -Wl,--wrap=sk_engine_step
tests/faults/shim.so: tests/faults/shim.c
	@$(MKDIR_P) tests/faults
	$(AM_V_CC)$(CC) -std=gnu11 $(CFLAGS) -shared -fPIC -o $@ $(srcdir)/tests/faults/shim.c -ldl
EXTRA_DIST += tests/faults/shim.c tests/faults/campaign.sh
CLEANFILES += tests/faults/saker$(EXEEXT) tests/faults/shim.so
dist_check_SCRIPTS += tests/watch.sh tests/faults.sh
tests/watch.log tests/faults.log: saker$(EXEEXT) tests/faults/saker$(EXEEXT) tests/faults/shim.so
