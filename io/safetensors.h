/* safetensors.h: the file format of Hugging Face's weights: a strict reader of headers and of the index of
 * a model in several files, a writer of headers, and its 2 and 4 byte floats as fp32.
 *
 *   u64 N, little-endian | N bytes of JSON, perhaps padded with spaces | data
 *   {"NAME": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [begin, end]}, ...,
 *    "__metadata__": {"text": "text"}}                                   offsets count from the data's start
 *
 * Nothing here is collective. A header is what a stranger wrote: every size is checked before it is used,
 * and each refusal names the file and the tensor. */
#ifndef SK_SAFETENSORS_H
#define SK_SAFETENSORS_H
#include "src/base.h"

enum { SK_ST_MAX_HEADER = 100000000, SK_ST_MAX_DIMS = 8, SK_ST_MAX_INDEX = 100000000 };

typedef enum sk_st_dtype { SK_ST_F32, SK_ST_BF16, SK_ST_F16, SK_ST_OTHER } sk_st_dtype;

typedef struct sk_st_tensor {
  char *name;
  sk_st_dtype dtype;
  char dtype_name[12]; /* as in the file */
  int rank;            /* 0: one element */
  int64_t dim[SK_ST_MAX_DIMS];
  int64_t begin, end;  /* bytes from the start of the data */
} sk_st_tensor;

typedef struct sk_st_file {
  int64_t data; /* where the data start in the file */
  int n;
  sk_st_tensor *tensor; /* by name, in byte order */
} sk_st_file;

/* Reads the header of a file and checks all of it: sizes against the file's, names given once, dtypes,
 * shapes, and that the tensors cover the data without holes and overlaps. On failure *f is empty. */
int sk_st_open(const char *path, sk_st_file *f, sk_err *e);
/* The same from a header in memory; bytes: of the data that follow it. path is for messages. f->data is 0. */
int sk_st_parse(const char *header, size_t n, int64_t bytes, const char *path, sk_st_file *f, sk_err *e);
void sk_st_free(sk_st_file *f);
/* NULL when there is no tensor of that name. */
const sk_st_tensor *sk_st_find(const sk_st_file *f, const char *name);

/* model.safetensors.index.json: which file of the folder has which tensor. */
typedef struct sk_st_index {
  int n_file, n;
  char **file;  /* plain names, in byte order */
  char **name;  /* tensors, in byte order */
  int *file_of; /* [n] */
} sk_st_index;
int sk_st_index_parse(const char *text, size_t n, const char *path, sk_st_index *x, sk_err *e);
void sk_st_index_free(sk_st_index *x);

/* Sets begin and end of n tensors, one after the other, and returns the start of their file (owned by the
 * caller): the length, and the header padded to a multiple of 8 bytes. *bytes: its size. */
char *sk_st_header(int n, sk_st_tensor *tensor, size_t *bytes);

/* "F32", "BF16", "F16"; SK_ST_OTHER when it is none of these. */
const char *sk_st_dtype_name(sk_st_dtype dtype);
sk_st_dtype sk_st_dtype_find(const char *name);
/* Bytes of one element (not of SK_ST_OTHER). */
int64_t sk_st_size(sk_st_dtype dtype);

/* n elements from a file as fp32, exactly (NaN with its bits); and fp32 for a file, rounded to nearest even.
 * encode returns the index of the first finite value that is too large for the dtype, else -1. src and dst
 * do not overlap; the file's side need not be aligned. */
void sk_st_decode(sk_st_dtype dtype, const void *src, int64_t n, float *dst);
int64_t sk_st_encode(sk_st_dtype dtype, const float *src, int64_t n, void *dst);
#endif
