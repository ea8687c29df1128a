# SK_MPI
# Checks that $CC (normally mpicc) compiles and links MPI 3 programs and finds the launcher.
# Substitutes MPIRUN; sets sk_mpi_version for the summary.
AC_DEFUN([SK_MPI], [
AC_MSG_CHECKING([for MPI 3 with $CC])
AC_LINK_IFELSE([AC_LANG_PROGRAM([[#include <mpi.h>
#if MPI_VERSION < 3
#error MPI 3 is needed
#endif]], [[int t; MPI_Init_thread(0, 0, MPI_THREAD_MULTIPLE, &t); MPI_Finalize();]])],
  [AC_MSG_RESULT([yes])],
  [AC_MSG_RESULT([no])
   AC_MSG_ERROR([$CC cannot link an MPI 3 program. Install an MPI with its compiler wrapper (Debian:
libopenmpi-dev openmpi-bin), or name the wrapper: ./configure CC=/path/to/mpicc])])
AC_MSG_CHECKING([whether the MPI says if it takes a GPU's memory])
AC_LINK_IFELSE([AC_LANG_PROGRAM([[#include <mpi.h>
#include <mpi-ext.h>]], [[return MPIX_Query_cuda_support();]])],
  [AC_MSG_RESULT([yes])
   AC_DEFINE([HAVE_MPI_QUERY_DEVICE], [1], [Define to 1 if the MPI has MPIX_Query_cuda_support.])],
  [AC_MSG_RESULT([no])])
AC_ARG_VAR([MPIRUN], [MPI launcher used by the tests, e.g. mpirun or "srun --mpi=pmix"])
AC_PATH_PROGS([MPIRUN], [mpirun mpiexec], [mpirun])
sk_mpi_version=$($CC --showme:version 2>/dev/null | sed -n 's/^.*: \(.*\) (Lang.*$/\1/p')
AS_IF([test -z "$sk_mpi_version"], [sk_mpi_version="by $CC, launcher $MPIRUN"])
])
