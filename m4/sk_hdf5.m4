# SK_HDF5
# Finds parallel HDF5 >= 1.10.8: --with-hdf5=DIR, else pkg-config (hdf5-openmpi, hdf5-mpi, hdf5), else
# `h5pcc -show`. Substitutes HDF5_CFLAGS and HDF5_LIBS (both may be given instead); sets
# sk_hdf5_from and sk_hdf5_version for the summary. A serial HDF5 is refused.
AC_DEFUN([SK_HDF5], [
AC_ARG_WITH([hdf5], [AS_HELP_STRING([--with-hdf5=DIR], [parallel HDF5 installed in DIR])],
  [], [with_hdf5=])
AC_ARG_VAR([HDF5_CFLAGS], [compiler flags for parallel HDF5, instead of looking for it])
AC_ARG_VAR([HDF5_LIBS], [linker flags for parallel HDF5, instead of looking for it])
sk_hdf5_from=
AS_CASE([$with_hdf5],
  [no], [AC_MSG_ERROR([HDF5 is required])],
  [''|yes], [],
  [sk_hdf5_from=$with_hdf5
   HDF5_CFLAGS="-I$with_hdf5/include"
   HDF5_LIBS="-L$with_hdf5/lib -Wl,-rpath,$with_hdf5/lib -lhdf5"])
AS_IF([test -n "$HDF5_LIBS" && test -z "$sk_hdf5_from"], [sk_hdf5_from="HDF5_LIBS"])
for sk_module in hdf5-openmpi hdf5-mpi hdf5; do
  AS_IF([test -z "$sk_hdf5_from" && $PKG_CONFIG --exists $sk_module],
    [sk_hdf5_from="pkg-config $sk_module"
     HDF5_CFLAGS=$($PKG_CONFIG --cflags $sk_module)
     HDF5_LIBS=$($PKG_CONFIG --libs $sk_module)])
done
AS_IF([test -z "$sk_hdf5_from"],
  [AC_PATH_PROGS([H5PCC], [h5pcc h5pcc.openmpi])
   AS_IF([test -n "$H5PCC"],
     [sk_hdf5_from=$H5PCC
      for sk_word in $($H5PCC -show); do
        AS_CASE([$sk_word],
          [-I*|-D*], [HDF5_CFLAGS="$HDF5_CFLAGS $sk_word"],
          [-L*|-l*|-Wl,*|*.a|*.so], [HDF5_LIBS="$HDF5_LIBS $sk_word"])
      done])])

sk_saved_CPPFLAGS=$CPPFLAGS; sk_saved_LIBS=$LIBS
CPPFLAGS="$CPPFLAGS $HDF5_CFLAGS"; LIBS="$HDF5_LIBS $LIBS"
AC_MSG_CHECKING([for parallel HDF5 >= 1.10.8])
AC_LINK_IFELSE([AC_LANG_PROGRAM([[#include <hdf5.h>
#ifndef H5_HAVE_PARALLEL
#error this HDF5 is serial
#endif
#if !H5_VERSION_GE(1, 10, 8)
#error this HDF5 is too old
#endif]], [[return H5Pset_fapl_mpio(0, MPI_COMM_WORLD, MPI_INFO_NULL) < 0;]])],
  [AC_MSG_RESULT([yes, $sk_hdf5_from])],
  [AC_MSG_RESULT([no])
   AC_MSG_ERROR([no parallel HDF5 >= 1.10.8 was found (looked at: ${sk_hdf5_from:-pkg-config, h5pcc}).
Install it (Debian: libhdf5-openmpi-dev) or point to it: --with-hdf5=DIR. A serial HDF5 will not do.])])
sk_hdf5_version=unknown
AC_COMPUTE_INT([sk_major], [H5_VERS_MAJOR], [[#include <hdf5.h>]], [sk_major=0])
AC_COMPUTE_INT([sk_minor], [H5_VERS_MINOR], [[#include <hdf5.h>]], [sk_minor=0])
AC_COMPUTE_INT([sk_release], [H5_VERS_RELEASE], [[#include <hdf5.h>]], [sk_release=0])
sk_hdf5_version=$sk_major.$sk_minor.$sk_release
CPPFLAGS=$sk_saved_CPPFLAGS; LIBS=$sk_saved_LIBS
])
