# SK_COMPILER_FLAGS
# Substitutes SK_CFLAGS (standard, warnings, optimisation) and sets sk_cc_version for the summary.
#
# Numbers: no -ffast-math in any form, so the compiler never reorders a sum and NaN stays NaN. Fused
# multiply-add (-ffp-contract=fast) is allowed: a build gives the same bits every time, two builds for
# different CPUs may differ in the last bit. -fno-math-errno and -fno-trapping-math change no value.
AC_DEFUN([SK_COMPILER_FLAGS], [
SK_CFLAGS=
m4_foreach_w([sk_flag], [-std=gnu11 -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes
    -fno-math-errno -fno-trapping-math -ffp-contract=fast], [SK_TRY_CFLAG(sk_flag)])
AS_IF([test "$enable_debug" = yes],
  [SK_CFLAGS="$SK_CFLAGS -O1"
   AC_DEFINE([SK_DEBUG], [1], [compile SK_ASSERT in])],
  [SK_CFLAGS="$SK_CFLAGS -O3"])
AS_IF([test "$enable_native" = auto],
  [AS_IF([test "$cross_compiling" = yes], [enable_native=no], [enable_native=yes])])
AS_IF([test "$enable_native" = yes], [SK_TRY_CFLAG([-march=native])])
AS_IF([test "$enable_werror" = yes], [SK_CFLAGS="$SK_CFLAGS -Werror"])
AC_SUBST([SK_CFLAGS])
sk_cc_version=$($CC --version 2>/dev/null | sed 1q)
])

# SK_TRY_CFLAG(FLAG): appends FLAG to SK_CFLAGS when the compiler takes it.
AC_DEFUN([SK_TRY_CFLAG], [
sk_saved_CFLAGS=$CFLAGS
CFLAGS="$CFLAGS $1 -Werror"
AC_MSG_CHECKING([whether $CC takes $1])
AC_COMPILE_IFELSE([AC_LANG_PROGRAM()],
  [AC_MSG_RESULT([yes]); SK_CFLAGS="$SK_CFLAGS $1"], [AC_MSG_RESULT([no])])
CFLAGS=$sk_saved_CFLAGS
])
