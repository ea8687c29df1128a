/* cuda_none.c: what stands for the CUDA device in a build without it. */
#include "kernels/ops.h"

const sk_ops *const sk_cuda = NULL;
const char *const sk_cuda_built = NULL;
