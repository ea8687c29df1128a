# SK_CBLAS
# Finds a CBLAS, preferring the OpenMP flavours (the pthread ones start their own threads beside
# ours): --with-cblas=auto|blis|openblas, or CBLAS_CFLAGS and CBLAS_LIBS for any other one. Debian
# keeps the flavours side by side in <multiarch>/blis-openmp and <multiarch>/openblas-openmp and has
# no blis.pc, so those folders are tried first, then pkg-config, then plain -l.
# Substitutes CBLAS_CFLAGS and CBLAS_LIBS; defines HAVE_BLIS or HAVE_OPENBLAS when the library is
# one of these (their arch or core name functions are then there), HAVE_BLIS_SKX when BLIS can be told to use
# its kernels for AVX-512; sets sk_cblas_name,
# sk_cblas_kernel and sk_cblas_fallback for the summary.
AC_DEFUN([SK_CBLAS], [
AC_ARG_WITH([cblas], [AS_HELP_STRING([--with-cblas=NAME],
  [auto (default), blis or openblas; others by CBLAS_CFLAGS and CBLAS_LIBS])],
  [], [with_cblas=auto])
AC_ARG_VAR([CBLAS_CFLAGS], [compiler flags for <cblas.h>, instead of looking for it])
AC_ARG_VAR([CBLAS_LIBS], [linker flags for a CBLAS, instead of looking for it])
AS_CASE([$with_cblas], [auto|yes], [sk_names="blis openblas"], [blis|openblas], [sk_names=$with_cblas],
  [AC_MSG_ERROR([--with-cblas=$with_cblas: auto, blis or openblas are known; for another library
give CBLAS_CFLAGS and CBLAS_LIBS])])
sk_multiarch=$($CC -print-multiarch 2>/dev/null)
sk_cblas_name=
AS_IF([test -n "$CBLAS_LIBS"],
  [SK_CBLAS_TRY([given by CBLAS_LIBS], [$CBLAS_CFLAGS], [$CBLAS_LIBS])],
  [for sk_name in $sk_names; do
     sk_dir=$sk_multiarch/$sk_name-openmp
     AS_IF([test -z "$sk_cblas_name" && test -d "/usr/lib/$sk_dir"],
       [SK_CBLAS_TRY([$sk_name-openmp], [-I/usr/include/$sk_dir],
         [-L/usr/lib/$sk_dir -Wl,-rpath,/usr/lib/$sk_dir -l$sk_name])])
     AS_IF([test -z "$sk_cblas_name" && $PKG_CONFIG --exists $sk_name],
       [SK_CBLAS_TRY([$sk_name], [$($PKG_CONFIG --cflags $sk_name)], [$($PKG_CONFIG --libs $sk_name)])])
     AS_IF([test -z "$sk_cblas_name"], [SK_CBLAS_TRY([$sk_name], [], [-l$sk_name])])
   done])
AS_IF([test -z "$sk_cblas_name"],
  [AC_MSG_ERROR([no CBLAS was found ($sk_names). Install one with OpenMP (Debian: libblis-openmp-dev or
libopenblas-openmp-dev), or give CBLAS_CFLAGS and CBLAS_LIBS.])])
SK_CBLAS_KERNEL
])

# SK_CBLAS_TRY(NAME, CFLAGS, LIBS): keeps them when a program with cblas_sgemm links.
AC_DEFUN([SK_CBLAS_TRY], [
AC_MSG_CHECKING([for cblas_sgemm: $1])
sk_saved_CPPFLAGS=$CPPFLAGS; sk_saved_LIBS=$LIBS
CPPFLAGS="$CPPFLAGS $2"; LIBS="$3 $LIBS"
AC_LINK_IFELSE([AC_LANG_PROGRAM([[#include <cblas.h>]], [[float a = 1, c;
cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, 1, 1, 1, 1, &a, 1, &a, 1, 0, &c, 1);]])],
  [AC_MSG_RESULT([yes]); sk_cblas_name="$1"; CBLAS_CFLAGS="$2"; CBLAS_LIBS="$3"],
  [AC_MSG_RESULT([no])])
CPPFLAGS=$sk_saved_CPPFLAGS; LIBS=$sk_saved_LIBS
])

# SK_CBLAS_KERNEL: which library this is, and which kernels it picks on this machine.
AC_DEFUN([SK_CBLAS_KERNEL], [
sk_saved_LIBS=$LIBS
LIBS="$CBLAS_LIBS $LIBS"
sk_cblas_kernel="not known"; sk_cblas_fallback=no
AC_LINK_IFELSE([SK_BLIS_PROGRAM], [AC_DEFINE([HAVE_BLIS], [1], [CBLAS is BLIS])])
sk_saved_CPPFLAGS=$CPPFLAGS
CPPFLAGS="$CPPFLAGS $CBLAS_CFLAGS"
AC_RUN_IFELSE([SK_BLIS_SKX_PROGRAM], [AC_DEFINE([HAVE_BLIS_SKX], [1], [BLIS's kernels for AVX-512 can be asked for])],
  [], [:])
CPPFLAGS=$sk_saved_CPPFLAGS
AC_LINK_IFELSE([SK_OPENBLAS_PROGRAM], [AC_DEFINE([HAVE_OPENBLAS], [1], [CBLAS is OpenBLAS])])
AC_RUN_IFELSE([SK_BLIS_PROGRAM], [sk_cblas_kernel=$(cat conftest.out)],
  [AC_RUN_IFELSE([SK_OPENBLAS_PROGRAM], [sk_cblas_kernel=$(cat conftest.out)], [], [:])], [:])
AS_CASE([$(AS_ECHO(["$sk_cblas_kernel"]) | tr 'A-Z' 'a-z')],
  [generic|prescott|core2|armv8], [sk_cblas_fallback=yes])
LIBS=$sk_saved_LIBS
])

m4_define([SK_BLIS_PROGRAM], [AC_LANG_SOURCE([[#include <stdio.h>
int bli_arch_query_id(void);
const char *bli_arch_string(int id);
int main(void) {
  FILE *f = fopen("conftest.out", "w");
  return !f || fputs(bli_arch_string(bli_arch_query_id()), f) < 0 || fclose(f);
}]])])
m4_define([SK_BLIS_SKX_PROGRAM], [AC_LANG_SOURCE([[#include <blis.h>
#include <stdio.h>
#include <stdlib.h>
int main(void) {
  char id[16];
  __builtin_cpu_init();
  snprintf(id, sizeof id, "%d", (int)BLIS_ARCH_SKX);
  if (setenv("BLIS_ARCH_TYPE", id, 1)) return 1;
  bli_init();
  return bli_arch_query_id() != BLIS_ARCH_SKX ||
         __builtin_cpu_is("intel") + __builtin_cpu_supports("avx512bf16") < 0; // they compile
}]])])
m4_define([SK_OPENBLAS_PROGRAM], [AC_LANG_SOURCE([[#include <stdio.h>
char *openblas_get_corename(void);
int main(void) {
  FILE *f = fopen("conftest.out", "w");
  return !f || fputs(openblas_get_corename(), f) < 0 || fclose(f);
}]])])
