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
  kernels/cudnn.h \
  kernels/ops.h \
  kernels/plan.c

if CUDA
libsaker_a_SOURCES += \
  kernels/cuda.c kernels/cuda.h \
  kernels/cuda_arch.h \
  kernels/cuda_attention.cu \
  kernels/cuda_attention_grad.cu \
  kernels/cuda_attention_groups.cu \
  kernels/cuda_attention_groups_grad.cu \
  kernels/cuda_conv.cu \
  kernels/cuda_embed.cu \
  kernels/cuda_flash.h \
  kernels/cuda_flash_grad.h \
  kernels/cuda_flash_groups.h \
  kernels/cuda_gate.cu \
  kernels/cuda_gemm.c \
  kernels/cuda_kernel.h \
  kernels/cuda_loss.cu \
  kernels/cuda_misc.cu \
  kernels/cuda_mma.h \
  kernels/cuda_norm.cu \
  kernels/cuda_range.c \
  kernels/cuda_ring.h \
  kernels/cuda_row.h \
  kernels/cuda_share.c \
  kernels/cuda_ssd.cu \
  kernels/cuda_ssd.h \
  kernels/cuda_ssd_chunk.cu \
  kernels/cuda_ssd_chunk.h \
  kernels/cuda_ssd_fused.cu \
  kernels/cuda_ssd_grad.cu \
  kernels/cuda_ssd_plain.h \
  kernels/cuda_ssd_read.h \
  kernels/cuda_ssd_side.h \
  kernels/cuda_ssd_write.h \
  kernels/cuda_wgmma.h
else
libsaker_a_SOURCES += kernels/cuda_none.c
endif

if CUDNN
libsaker_a_SOURCES += kernels/cuda_cudnn.c kernels/cuda_cudnn.h kernels/cuda_cudnn_graph.c
else
libsaker_a_SOURCES += kernels/cudnn_none.c
endif

# CUDA sources are compiled by nvcc and linked like any object. Their includes are tracked by make alone.
SUFFIXES = .cu
AM_V_NVCC = $(am__v_NVCC_$(V))
am__v_NVCC_ = $(am__v_NVCC_$(AM_DEFAULT_VERBOSITY))
am__v_NVCC_0 = @echo "  NVCC    " $@;
am__v_NVCC_1 =
.cu.o:
	$(AM_V_NVCC)$(NVCC) $(DEFS) -I$(top_srcdir) $(CPPFLAGS) $(SK_NVCCFLAGS) $(NVCCFLAGS) \
	  -MMD -MP -MF $*.cu.d -c -o $@ $<
-include $(wildcard kernels/*.cu.d)
CLEANFILES += kernels/*.cu.d
