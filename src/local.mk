# The program: base, deck, grid, registry, layers, training, verbs. main.c stays out of the archive.
saker_SOURCES = src/main.c
libsaker_a_SOURCES += \
  src/agree.c src/agree.h \
  src/arena.c src/arena.h \
  src/attention.c src/attention.h \
  src/bench.c src/bench.h \
  src/bench_attention.c \
  src/bench_comm.c \
  src/bench_gemm.c \
  src/bench_io.c \
  src/bench_layer.c \
  src/bench_ops.c \
  src/bench_step.c \
  src/base.c src/base.h \
  src/checkpoint.c src/checkpoint.h \
  src/comm.h src/comm_mpi.c src/comm_nccl.c src/comm_plan.c \
  src/config.c src/config.h src/config_read.h \
  src/config_layers.c \
  src/config_list.c \
  src/config_value.c \
  src/convert.c src/convert.h src/convert_from.c src/convert_to.c \
  src/ctx.h \
  src/data.c src/data.h \
  src/device.c src/device.h \
  src/direct.c src/direct.h \
  src/engine.c src/engine.h \
  src/eval.c src/eval.h \
  src/generate.c src/generate.h \
  src/grid.c src/grid.h \
  src/head.c \
  src/hf_json.c src/hf_json.h \
  src/info.c src/info.h \
  src/keys.c src/keys.h \
  src/layer.c src/layer.h \
  src/layout.c src/layout.h \
  src/linear.c src/linear.h \
  src/lr.c src/lr.h \
  src/sum.c src/sum.h \
  src/mapped.c src/mapped.h \
  src/mamba.c src/mamba.h \
  src/mamba_cp.c \
  src/model.c src/model.h \
  src/model_cfg.c \
  src/optim.c src/optim.h \
  src/overlap.c src/overlap.h \
  src/param.c src/param.h \
  src/pipeline.c \
  src/placement.c src/placement.h \
  src/progress.c src/progress.h \
  src/schedule.c src/schedule.h \
  src/segment.c src/segment.h \
  src/shard.c src/shard.h \
  src/split.c src/split.h \
  src/stop.c src/stop.h \
  src/timeline.c src/timeline.h \
  src/timer.c src/timer.h \
  src/trace.c src/trace.h \
  src/train.c src/train.h \
  src/train_eval.c \
  src/train_save.c \
  src/train_setup.c \
  src/train_trouble.c \
  src/train_watch.c \
  src/transport.c src/transport.h \
  src/transport_link.h src/transport_open.c \
  src/verbs.c src/verbs.h \
  src/watch.c src/watch.h

# Its header is made before it, also when a single program is asked for.
src/bench.$(OBJEXT): commit.h
