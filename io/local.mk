# Files: HDF5, token data, checkpoints, run folder. They know no layers and no device.
libsaker_a_SOURCES += \
  io/ckpt.c io/ckpt.h io/ckpt_job.h io/ckpt_side.c \
  io/ckpt_form.c \
  io/ckpt_save.c \
  io/ckpt_work.c \
  io/ckpt_write.c \
  io/deck.c io/deck.h \
  io/events.c io/events.h \
  io/floats.c \
  io/fsutil.c io/fsutil.h \
  io/h5.c io/h5.h \
  io/h5_form.c \
  io/manifest.c io/manifest.h \
  io/metrics.c \
  io/plot.c \
  io/run.c io/run.h \
  io/safetensors.c io/safetensors.h \
  io/scratch.c io/scratch.h \
  io/text_list.c io/text_list.h \
  io/text_read.c io/text_read.h \
  io/tokenizer.c io/tokenizer.h io/tokenizer_parts.h \
  io/tokenizer_added.c \
  io/tokenizer_bpe.c \
  io/tokenizer_norm.c \
  io/tokenizer_regex.c \
  io/tokenizer_split.c \
  io/tokens.c io/tokens.h \
  io/tokens_build.c \
  io/tokens_check.c \
  io/tokens_formats.c \
  io/tokens_import.c io/tokens_import.h \
  io/tokens_info.c \
  io/tokens_write.c io/tokens_write.h \
  io/utf8.c io/utf8.h
