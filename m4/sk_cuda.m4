# SK_CUDA
# The GPU backend: --with-cuda[=DIR] (not given: yes where nvidia-smi lists a GPU and nvcc is found),
# --with-cuda-arch=LIST, --with-nccl[=DIR] (default with CUDA), --with-cudnn[=DIR] (default: no). Asked for and
# not found is an error, NCCL with --with-cuda too.
#
# Sets the conditionals CUDA and CUDNN; substitutes NVCC, NVCCFLAGS (the user's), SK_NVCCFLAGS (ours), CUDA_CPPFLAGS and
# CUDA_LIBS; defines HAVE_CUDA, SK_CUDA_VERSION, SK_CUDA_ARCH, HAVE_NCCL and SK_CUDNN_LIB; sets sk_cuda_text, sk_nccl_text and
# sk_cudnn_text for the summary. Nothing links libcuda or libcudnn: the program starts where no driver is.
AC_DEFUN([SK_CUDA], [
AC_ARG_WITH([cuda], [AS_HELP_STRING([--with-cuda@<:@=DIR@:>@],
  [build for NVIDIA GPUs, with the CUDA toolkit in DIR (default: where nvidia-smi finds a GPU)])],
  [], [with_cuda=auto])
AC_ARG_WITH([cuda-arch], [AS_HELP_STRING([--with-cuda-arch=LIST],
  [GPU architectures to compile for, 80 or later, e.g. 80,90a (default: 90a, Hopper; all others, also 90,
   compute bf16 attention and SSD by slower kernels)])], [], [with_cuda_arch=90a])
AC_ARG_WITH([nccl], [AS_HELP_STRING([--with-nccl@<:@=DIR@:>@],
  [communicate between GPUs with NCCL (default: with CUDA)])], [], [with_nccl=auto])
AC_ARG_WITH([cudnn], [AS_HELP_STRING([--with-cudnn@<:@=DIR@:>@],
  [attention by cuDNN where it can: headers in DIR/include; libcudnn.so.9 is loaded at run time, from the
   system's folders, LD_LIBRARY_PATH or DIR/lib (default: no)])], [], [with_cudnn=no])
AC_ARG_VAR([NVCC], [CUDA compiler])
AC_ARG_VAR([NVCCFLAGS], [CUDA compiler flags, after ours (default: -O3)])
sk_cuda_text=no; sk_nccl_text=no; sk_cudnn_text=no; sk_cuda_dir=
AS_CASE([$with_cuda], [no|yes|auto], [], [sk_cuda_dir=$with_cuda; with_cuda=yes])
AS_IF([test "$with_cuda" = auto],
  [AC_MSG_CHECKING([for an NVIDIA GPU])
   AS_IF([(nvidia-smi -L) 2>/dev/null | grep GPU >/dev/null],
     [AC_MSG_RESULT([yes])], [AC_MSG_RESULT([no]); with_cuda=no])])
AS_CASE([$with_cuda], [no],
  [AS_CASE([$with_nccl], [no|auto], [], [AC_MSG_ERROR([--with-nccl needs --with-cuda])])],
  [SK_CUDA_FIND
   AS_IF([test "$with_cuda" != no], [SK_NCCL])])
AS_IF([test "$with_cudnn" != no],
  [AS_IF([test "$with_cuda" = no], [AC_MSG_ERROR([--with-cudnn needs --with-cuda])])
   SK_CUDNN])
AM_CONDITIONAL([CUDA], [test "$with_cuda" != no])
AM_CONDITIONAL([CUDNN], [test "$with_cudnn" != no])
])

# SK_CUDA_FAIL(WHAT): an error where CUDA was asked for; else a note in the summary.
AC_DEFUN([SK_CUDA_FAIL], [
AS_IF([test "$with_cuda" = yes],
  [AC_MSG_ERROR([--with-cuda: $1. Name the folder of a CUDA toolkit of version 12.8 or later (the one that
has bin/nvcc): --with-cuda=DIR, or leave --with-cuda away for a program that runs on the CPU.])],
  [AC_MSG_WARN([there is a GPU here, but $1: the program will run on the CPU only])
   with_cuda=no; sk_cuda_text="no ($1)"])
])

AC_DEFUN([SK_CUDA_FIND], [
AS_IF([test -n "$sk_cuda_dir"], [sk_path=$sk_cuda_dir/bin],
  [sk_path=$PATH$PATH_SEPARATOR${CUDA_HOME:-/usr/local/cuda}/bin])
AC_PATH_PROG([NVCC], [nvcc], [], [$sk_path])
AS_IF([test -z "$NVCC"], [SK_CUDA_FAIL([no nvcc in $sk_path])],
  [AS_IF([test -z "$sk_cuda_dir"], [SK_CUDA_ROOT])
   : ${NVCCFLAGS=-O3}
   SK_NVCCFLAGS="-std=c++17 -Xcompiler=-Wall,-Wextra,-Wno-unused-parameter"
   for sk_arch in $(AS_ECHO(["$with_cuda_arch"]) | tr ',' ' '); do
     SK_NVCCFLAGS="$SK_NVCCFLAGS -gencode=arch=compute_$sk_arch,code=sm_$sk_arch"
   done
   AS_IF([test "$enable_debug" = yes], [SK_NVCCFLAGS="$SK_NVCCFLAGS -lineinfo"])
   AS_IF([test "$enable_werror" = yes], [SK_NVCCFLAGS="$SK_NVCCFLAGS -Werror all-warnings -Xcompiler=-Werror"])
   SK_CUDA_TRY])
])

# The toolkit's folder as nvcc itself knows it; nvcc may be a link or a script in another folder.
AC_DEFUN([SK_CUDA_ROOT], [
: >conftest.cu
sk_cuda_dir=$($NVCC -dryrun -c conftest.cu 2>&1 | sed -n 's/^#[$] TOP=//p')
AS_IF([test -d "$sk_cuda_dir"], [sk_cuda_dir=$(cd "$sk_cuda_dir" && pwd)], [sk_cuda_dir=${NVCC%/bin/*}])
])

# A kernel compiles, and a program with CUDA and cuBLASLt links. What the kernels need of a GPU came with 80:
# bf16, copies past the registers (cp.async), a warp's minimum in one instruction.
AC_DEFUN([SK_CUDA_TRY], [
AC_MSG_CHECKING([whether $NVCC compiles for $with_cuda_arch])
cat >conftest.cu <<'EOF'
#include <cuda_bf16.h>
#if defined __CUDA_ARCH__ && __CUDA_ARCH__ < 800
#error 80 is the oldest architecture that has what the kernels need
#endif
__global__ void k(float *x) { x[[threadIdx.x]] += 1; }
void run(float *x) { k<<<1, 32>>>(x); }
EOF
AS_IF([$NVCC $SK_NVCCFLAGS $NVCCFLAGS -c -o conftest_cu.o conftest.cu >&AS_MESSAGE_LOG_FD 2>&1],
  [AC_MSG_RESULT([yes])
   sk_cuda_lib=
   for sk_lib in lib64 lib targets/$(uname -m)-linux/lib; do
     AS_IF([test -z "$sk_cuda_lib" && test -e "$sk_cuda_dir/$sk_lib/libcudart.so"],
       [sk_cuda_lib=$sk_cuda_dir/$sk_lib])
   done
   AS_IF([test -e "$sk_cuda_dir/include/cuda_runtime.h"], [CUDA_CPPFLAGS="-isystem $sk_cuda_dir/include"])
   AS_IF([test -n "$sk_cuda_lib"], [CUDA_LIBS="-L$sk_cuda_lib -Wl,-rpath,$sk_cuda_lib"])
   CUDA_LIBS="$CUDA_LIBS -lcublasLt -lcudart -lstdc++"
   AC_MSG_CHECKING([for CUDA >= 12.8 with cuBLASLt])
   sk_saved_CPPFLAGS=$CPPFLAGS; sk_saved_LIBS=$LIBS
   CPPFLAGS="$CPPFLAGS $CUDA_CPPFLAGS"; LIBS="$CUDA_LIBS $LIBS"
   AC_LINK_IFELSE([AC_LANG_PROGRAM([[#include <cuda_runtime.h>
#include <cublasLt.h>
#if CUDART_VERSION < 12080
#error too old
#endif]], [[cublasLtHandle_t h; int n; return cudaGetDeviceCount(&n) + cublasLtCreate(&h);]])],
     [AC_MSG_RESULT([yes])
      AC_DEFINE([HAVE_CUDA], [1], [the CUDA device is built])
      AC_DEFINE_UNQUOTED([SK_CUDA_ARCH], ["$with_cuda_arch"], [GPU architectures compiled for])
      sk_cuda_version=$($NVCC --version | sed -n 's/.*release \(.*\), V.*/\1/p')
      AC_DEFINE_UNQUOTED([SK_CUDA_VERSION], ["$sk_cuda_version"], [version of the CUDA toolkit])
      sk_cuda_text="$sk_cuda_version in $sk_cuda_dir, for $with_cuda_arch"],
     [AC_MSG_RESULT([no]); SK_CUDA_FAIL([$sk_cuda_dir has no CUDA 12.8 with cuBLASLt that links])])
   CPPFLAGS=$sk_saved_CPPFLAGS; LIBS=$sk_saved_LIBS],
  [AC_MSG_RESULT([no]); SK_CUDA_FAIL([$NVCC does not compile for $with_cuda_arch (see config.log)])])
rm -f conftest.cu conftest_cu.o
AC_SUBST([SK_NVCCFLAGS])
AC_SUBST([CUDA_CPPFLAGS])
AC_SUBST([CUDA_LIBS])
])

AC_DEFUN([SK_NCCL], [
AS_IF([test "$with_nccl" = no], [sk_nccl_text="no: several GPUs exchange data through the host, slowly"], [
AS_CASE([$with_nccl], [auto|yes], [sk_nccl_cpp= sk_nccl_libs=-lnccl],
  [sk_nccl_cpp="-isystem $with_nccl/include"
   sk_nccl_libs="-L$with_nccl/lib -Wl,-rpath,$with_nccl/lib -lnccl"])
AC_MSG_CHECKING([for NCCL])
sk_saved_CPPFLAGS=$CPPFLAGS; sk_saved_LIBS=$LIBS
CPPFLAGS="$CPPFLAGS $sk_nccl_cpp $CUDA_CPPFLAGS"; LIBS="$sk_nccl_libs $CUDA_LIBS $LIBS"
AC_LINK_IFELSE([AC_LANG_PROGRAM([[#include <nccl.h>]], [[int v; return ncclGetVersion(&v);]])],
  [AC_MSG_RESULT([yes])
   AC_DEFINE([HAVE_NCCL], [1], [GPUs communicate with NCCL])
   AC_COMPUTE_INT([sk_major], [NCCL_MAJOR], [[#include <nccl.h>]], [sk_major=0])
   AC_COMPUTE_INT([sk_minor], [NCCL_MINOR], [[#include <nccl.h>]], [sk_minor=0])
   AC_COMPUTE_INT([sk_patch], [NCCL_PATCH], [[#include <nccl.h>]], [sk_patch=0])
   sk_nccl_text=$sk_major.$sk_minor.$sk_patch
   CUDA_CPPFLAGS="$sk_nccl_cpp $CUDA_CPPFLAGS"; CUDA_LIBS="$sk_nccl_libs $CUDA_LIBS"],
  [AC_MSG_RESULT([no])
   sk_nccl_text="no (not found): several GPUs exchange data through the host, slowly"
   AS_IF([test "$with_cuda,$with_nccl" = auto,auto], [AC_MSG_WARN([NCCL: $sk_nccl_text])],
     [AC_MSG_ERROR([no NCCL was found. Name its folder: --with-nccl=DIR, or build without it
(--without-nccl); several GPUs then exchange data through the host, slowly.])])])
CPPFLAGS=$sk_saved_CPPFLAGS; LIBS=$sk_saved_LIBS])
])

# Headers alone: the library is loaded by the program. The folder beside the headers is where it looks last.
AC_DEFUN([SK_CUDNN], [
sk_cudnn_cpp= sk_cudnn_lib=
AS_CASE([$with_cudnn], [yes], [],
  [sk_cudnn_cpp="-isystem $with_cudnn/include"
   for sk_lib in lib lib64; do
     AS_IF([test -z "$sk_cudnn_lib" && test -e "$with_cudnn/$sk_lib/libcudnn.so.9"],
       [sk_cudnn_lib=$(cd "$with_cudnn/$sk_lib" && pwd)])
   done])
AC_MSG_CHECKING([for the headers of cuDNN >= 9.10.2])
sk_saved_CPPFLAGS=$CPPFLAGS
CPPFLAGS="$CPPFLAGS $sk_cudnn_cpp $CUDA_CPPFLAGS"
AC_COMPILE_IFELSE([AC_LANG_PROGRAM([[#include <cudnn_graph.h>
#if CUDNN_VERSION < 91002 || CUDNN_MAJOR != 9
#error another version
#endif]], [[return (int)CUDNN_ATTR_OPERATION_RESHAPE_YDESC;]])],
  [AC_MSG_RESULT([yes])
   AC_COMPUTE_INT([sk_minor], [CUDNN_MINOR], [[#include <cudnn_version.h>]], [sk_minor=0])
   AC_COMPUTE_INT([sk_patch], [CUDNN_PATCHLEVEL], [[#include <cudnn_version.h>]], [sk_patch=0])
   sk_cudnn_text="headers of 9.$sk_minor.$sk_patch, the library is loaded at run time"
   CUDA_CPPFLAGS="$sk_cudnn_cpp $CUDA_CPPFLAGS"
   AC_SEARCH_LIBS([dlopen], [dl])],
  [AC_MSG_RESULT([no])
   AC_MSG_ERROR([--with-cudnn: no headers of cuDNN 9.10.2 or a later 9 were found. Name the folder that has
include/cudnn_graph.h (for example .../site-packages/nvidia/cudnn of PyPI's nvidia-cudnn-cu13): --with-cudnn=DIR,
or leave --with-cudnn away: Saker has attention kernels of its own.])])
CPPFLAGS=$sk_saved_CPPFLAGS
AC_DEFINE_UNQUOTED([SK_CUDNN_LIB], ["$sk_cudnn_lib"], [where libcudnn.so.9 is looked for last; may be empty])
])
