# The devices. They know no MPI, no HDF5 and no deck.
libsaker_a_SOURCES += \
  kernels/cpu.c kernels/cpu.h \
  kernels/cpu_attention.c \
  kernels/cpu_conv.c \
  kernels/cpu_embed.c \
  kernels/cpu_gate.c \
  kernels/cpu_gemm.c \
  kernels/cpu_loss.c \
  kernels/cpu_mamba.h \
  kernels/cpu_math.h \
  kernels/cpu_norm.c \
  kernels/cpu_optim.c \
  kernels/cpu_product.h \
  kernels/cpu_ssd.c kernels/cpu_ssd.h \
  kernels/cpu_ssd_grad.c \
  kernels/ops.h \
  kernels/plan.c
