# Files: HDF5, token data, checkpoints, run folder. They know no layers and no device.
libsaker_a_SOURCES += \
  io/ckpt.c io/ckpt.h io/ckpt_job.h \
  io/ckpt_save.c \
  io/ckpt_write.c \
  io/deck.c io/deck.h \
  io/events.c io/events.h \
  io/fsutil.c io/fsutil.h \
  io/h5.c io/h5.h \
  io/h5_form.c \
  io/manifest.c io/manifest.h \
  io/metrics.c \
  io/plot.c \
  io/run.c io/run.h \
  io/tokens.c io/tokens.h \
  io/tokens_build.c
