# Tests speak TAP. A program's suffix is its number of ranks; one source is linked under each name.
# golden.1 is a standing measure and is built by plain `make`.
noinst_PROGRAMS += tests/golden.1
check_PROGRAMS += \
  tests/ckpt.1 tests/ckpt.2 tests/ckpt.3 \
  tests/ckpt_keep.1 tests/ckpt_keep.2 tests/ckpt_keep.3 \
  tests/comm.1 tests/comm.2 tests/comm.3 tests/comm.4 \
  tests/comm_count.8 \
  tests/config.1 tests/config.2 \
  tests/convert.1 tests/convert.3 \
  tests/cudnn.1 \
  tests/damage.1 tests/damage.3 \
  tests/data.1 tests/data.2 \
  tests/device.1 tests/devices.2 tests/direct.4 \
  tests/events.1 \
  tests/faults.1 tests/faults.2 \
  tests/generate.1 \
  tests/grid.1 tests/grid.4 tests/grid.8 \
  tests/import.1 tests/import.3 \
  tests/layout.1 \
  tests/model.1 \
  tests/nan.8 \
  tests/ops.1 tests/ops_attention.1 \
  tests/optim.1 \
  tests/ops_mamba.1 \
  tests/overlap.4 \
  tests/parity.8 \
  tests/plan.8 \
  tests/policy.2 \
  tests/reshard.8 \
  tests/rundir.1 tests/rundir.2 \
  tests/safetensors.1 tests/safetensors.3 \
  tests/schedule.1 \
  tests/ssd.1 \
  tests/tokenizer.1 \
  tests/tokens.1 tests/tokens.2 tests/tokens.4 \
  tests/timeline.3 \
  tests/transport.2 tests/transport.3

tests_ckpt_1_SOURCES = tests/ckpt.c tests/ckpt_case.h tests/tap.h tests/folder.h
tests_ckpt_2_SOURCES = $(tests_ckpt_1_SOURCES)
tests_ckpt_3_SOURCES = $(tests_ckpt_1_SOURCES)
tests_ckpt_keep_1_SOURCES = tests/ckpt_keep.c tests/ckpt_case.h tests/tap.h tests/folder.h
tests_ckpt_keep_2_SOURCES = $(tests_ckpt_keep_1_SOURCES)
tests_ckpt_keep_3_SOURCES = $(tests_ckpt_keep_1_SOURCES)
tests_comm_1_SOURCES = tests/comm.c tests/tap.h
tests_comm_2_SOURCES = $(tests_comm_1_SOURCES)
tests_comm_3_SOURCES = $(tests_comm_1_SOURCES)
tests_comm_4_SOURCES = $(tests_comm_1_SOURCES)
tests_comm_count_8_SOURCES = tests/comm_count.c tests/on_grid.h tests/small_model.h tests/tap.h
tests_config_1_SOURCES = tests/config.c tests/tap.h
tests_config_2_SOURCES = $(tests_config_1_SOURCES)
tests_convert_1_SOURCES = tests/convert.c tests/hf_folder.h tests/tap.h
tests_convert_3_SOURCES = $(tests_convert_1_SOURCES)
tests_cudnn_1_SOURCES = tests/cudnn.c tests/device_check.c tests/device_check.h tests/device_tap.h tests/small_model.h \
  tests/tap.h
tests_damage_1_SOURCES = tests/damage.c tests/tap.h tests/folder.h
tests_damage_3_SOURCES = $(tests_damage_1_SOURCES)
tests_data_1_SOURCES = tests/data.c tests/tap.h
tests_data_2_SOURCES = $(tests_data_1_SOURCES)
tests_device_1_SOURCES = tests/device.c tests/device_check.c tests/device_check.h tests/device_engine.c \
  tests/device_mixer.c tests/device_tap.h tests/small_model.h tests/tap.h
tests_devices_2_SOURCES = tests/devices.c tests/small_model.h tests/tap.h
tests_direct_4_SOURCES = tests/direct.c tests/tap.h
tests_events_1_SOURCES = tests/events.c tests/tap.h
tests_faults_1_SOURCES = tests/faults.c tests/faults_shim.c tests/faults_shim.h tests/tap.h
tests_faults_2_SOURCES = $(tests_faults_1_SOURCES)
tests_generate_1_SOURCES = tests/generate.c tests/small_model.h tests/tap.h
tests_golden_1_SOURCES = tests/golden.c tests/tap.h
tests_grid_1_SOURCES = tests/grid.c tests/tap.h
tests_grid_4_SOURCES = $(tests_grid_1_SOURCES)
tests_grid_8_SOURCES = $(tests_grid_1_SOURCES)
tests_import_1_SOURCES = tests/import.c tests/tap.h tests/folder.h
tests_import_3_SOURCES = $(tests_import_1_SOURCES)
tests_layout_1_SOURCES = tests/layout.c tests/small_model.h tests/tap.h
tests_model_1_SOURCES = tests/model.c tests/small_model.h tests/tap.h
tests_nan_8_SOURCES = tests/nan.c tests/on_grid.h tests/small_model.h tests/tap.h
tests_optim_1_SOURCES = tests/optim.c tests/small_model.h tests/tap.h
tests_ops_1_SOURCES = tests/ops.c tests/ops_check.h tests/ref_ops.c tests/ref_ops.h tests/tap.h
tests_ops_attention_1_SOURCES = tests/ops_attention.c tests/ops_check.h tests/ref_ops.c tests/ref_ops.h tests/tap.h
tests_ops_mamba_1_SOURCES = tests/ops_mamba.c tests/ops_check.h tests/ref_mamba.c tests/ref_mamba.h \
  tests/tap.h
tests_overlap_4_SOURCES = tests/overlap.c tests/on_grid.h tests/small_model.h tests/tap.h
tests_parity_8_SOURCES = tests/parity.c tests/parity.h tests/parity_cases.c tests/parity_run.c \
  tests/on_grid.h tests/small_model.h tests/tap.h
tests_plan_8_SOURCES = tests/plan.c tests/on_grid.h tests/small_model.h tests/tap.h
tests_policy_2_SOURCES = tests/policy.c tests/tap.h tests/folder.h
tests_policy_2_LDFLAGS = $(AM_LDFLAGS) -Wl,--wrap=sk_engine_step -Wl,--wrap=sk_engine_take_loss
tests_reshard_8_SOURCES = tests/reshard.c tests/on_grid.h tests/small_model.h tests/tap.h
tests_rundir_1_SOURCES = tests/rundir.c tests/tap.h tests/folder.h
tests_rundir_2_SOURCES = $(tests_rundir_1_SOURCES)
tests_safetensors_1_SOURCES = tests/safetensors.c tests/hf_folder.h tests/tap.h
tests_safetensors_3_SOURCES = $(tests_safetensors_1_SOURCES)
tests_schedule_1_SOURCES = tests/schedule.c tests/schedule_sim.h tests/tap.h
tests_ssd_1_SOURCES = tests/ssd.c tests/ops_check.h tests/ref_mamba.c tests/ref_mamba.h tests/tap.h
tests_tokenizer_1_SOURCES = tests/tokenizer.c tests/tap.h
tests_tokens_1_SOURCES = tests/tokens.c tests/tap.h tests/folder.h
tests_tokens_2_SOURCES = $(tests_tokens_1_SOURCES)
tests_tokens_4_SOURCES = $(tests_tokens_1_SOURCES)
tests_timeline_3_SOURCES = tests/timeline.c tests/tap.h
tests_transport_2_SOURCES = tests/transport.c tests/tap.h
tests_transport_3_SOURCES = $(tests_transport_2_SOURCES)

# One a line.
dist_check_SCRIPTS = \
  tests/async.sh \
  tests/bpe.sh \
  tests/calls.sh \
  tests/cli.sh \
  tests/convert.sh \
  tests/damage.sh \
  tests/docs.sh \
  tests/devices.sh \
  tests/jobscripts.sh \
  tests/layering.sh \
  tests/long.sh \
  tests/regrid.sh \
  tests/setups.sh \
  tests/slurm.sh \
  tests/slurm2.sh \
  tests/tools.sh \
  tests/train.sh \
  tests/trouble.sh
TESTS += tests/golden.1 $(check_PROGRAMS) $(dist_check_SCRIPTS)
EXTRA_DIST += \
  tests/clang-tidy.yaml \
  tests/count.sh \
  tests/cppcheck.h \
  tests/cuda_calls.c \
  tests/hf_train.py \
  tests/installed.sh \
  tests/leaks.supp \
  tests/mini-slurm.sh \
  tests/mpirun.sh \
  tests/quality.sh \
  tests/sanitize.sh \
  tests/quickstart.sh \
  tests/ref \
  tests/scale.py \
  tests/tap.sh \
  tests/valgrind.supp

# One launcher for programs (mpirun) and scripts (bash): it sets the limits and the environment.
TEST_EXTENSIONS = .sh
LOG_DRIVER = env AM_TAP_AWK='$(AWK)' $(SHELL) $(top_srcdir)/build-aux/tap-driver.sh
LOG_COMPILER = bash $(srcdir)/tests/mpirun.sh
SH_LOG_DRIVER = $(LOG_DRIVER)
SH_LOG_COMPILER = $(LOG_COMPILER)
AM_TESTS_ENVIRONMENT = \
  SAKER='$(abs_builddir)/saker'; export SAKER; \
  SAKER_SRCDIR='$(abs_srcdir)'; export SAKER_SRCDIR; \
  SAKER_BUILDDIR='$(abs_builddir)'; export SAKER_BUILDDIR; \
  MPIRUN='$(MPIRUN)'; export MPIRUN;
$(dist_check_SCRIPTS:.sh=.log): saker$(EXEEXT)
# One Slurm at a time.
tests/slurm2.log: tests/slurm.log

# `make check-counts` after `make check`: one line over all tests; a missing result is a failure.
check-counts:
	@bash $(srcdir)/tests/count.sh $(TEST_LOGS:.log=.trs)
# The batch system's tests alone; here a missing Slurm is a failure.
check-slurm:
	SAKER_NEED_SLURM=1 $(MAKE) $(AM_MAKEFLAGS) check TESTS='tests/slurm.sh tests/slurm2.sh'
# Readers of foreign files under a fuzzer (clang): 10 minutes a target. The two others are for the script.
FUZZ_SECONDS = 600
fuzz:
	FUZZ_SECONDS='$(FUZZ_SECONDS)' FUZZ_TARGETS='$(FUZZ_TARGETS)' bash $(srcdir)/tests/fuzz/run.sh
fuzz-flags:
	@echo '$(HDF5_CFLAGS) $(FYAML_CFLAGS) $(JANSSON_CFLAGS) $(XXHASH_CFLAGS) $(TEXT_CFLAGS)'
fuzz-libs:
	@echo '$(filter-out libsaker.a,$(LDADD)) $(LIBS)'
EXTRA_DIST += tests/fuzz
# Everything in the tests that `make check` runs a part of: about half an hour on 2 cores. Fuzzing is left out
# (77) where there is no clang.
check-long:
	FUZZ_SECONDS=30 bash $(srcdir)/tests/fuzz/run.sh || [ $$? = 77 ]
	SAKER_LONG=1 TEST_TIMEOUT=5400 $(MAKE) $(AM_MAKEFLAGS) check \
	  TESTS='tests/parity.8 tests/reshard.8 tests/schedule.1'
# 200 launched faults (tests/faults/campaign.sh) and ten thousand faults in a run's files, of which `make check` has a few hundred.
check-faults:
	SAKER_FAULTS=5000 TEST_TIMEOUT=3600 $(MAKE) $(AM_MAKEFLAGS) check TESTS='tests/faults.1 tests/faults.2'
	@grep -h '^#' tests/faults.1.log tests/faults.2.log
	$(MAKE) $(AM_MAKEFLAGS) check-launched-faults
# What the ordinary tests do not look for (tests/quality.sh); each in a build of its own below this folder.
quality = @SAKER='$(abs_builddir)/saker' SAKER_SRCDIR='$(abs_srcdir)' MPIRUN='$(MPIRUN)' bash $(srcdir)/tests/quality.sh
check-asan:
	$(quality) asan
check-valgrind:
	@SAKER='$(abs_builddir)/saker' SAKER_SRCDIR='$(abs_srcdir)' MPIRUN='$(MPIRUN)' TEST_TIMEOUT=3600 \
	  bash $(srcdir)/tests/mpirun.sh $(srcdir)/tests/quality.sh valgrind
coverage:
	$(quality) coverage
# On a machine with a GPU: compute-sanitizer on every trial of every op.
check-sanitizer: tests/device.1
	bash $(srcdir)/tests/sanitize.sh tests/device.1
tidy: commit.h
	$(quality) tidy
cppcheck:
	$(quality) cppcheck
print-tests:
	@echo $(TESTS)
print-flags:
	@echo $(DEFS) $(DEFAULT_INCLUDES) $(AM_CPPFLAGS) $(CPPFLAGS) $(AM_CFLAGS) | tr ' ' '\n' | \
	  grep -E '^-(I|D|std|fopenmp|march)' | grep -v PACKAGE_STRING | tr '\n' ' '; $(CC) -showme:compile
.PHONY: check-asan check-sanitizer check-valgrind coverage cppcheck print-flags print-tests tidy

# Against the real transformers, by hand: PYTHON must have torch, transformers, safetensors and h5py.
noinst_PROGRAMS += tests/hf_logits
tests_hf_logits_SOURCES = tests/hf_logits.c
EXTRA_DIST += tests/check_hf.py
PYTHON = python3
# Against PyPI's tokenizers and megatron-core, ids and speed, in a virtual environment; needs apt for its texts (10 minutes).
check-tokenizer: saker$(EXEEXT)
	bash $(srcdir)/tests/check_tokenizer.sh
EXTRA_DIST += tests/check_tokenizer.sh tests/import_compare.py tests/tokenizer_compare.py
check-hf: saker$(EXEEXT) tests/hf_logits$(EXEEXT)
	$(PYTHON) $(srcdir)/tests/check_hf.py . $(or $(SAKER_GOLDEN_DIR),$(srcdir)/tests/ref)
.PHONY: check-counts check-faults check-hf check-long check-slurm check-tokenizer fuzz fuzz-flags fuzz-libs
