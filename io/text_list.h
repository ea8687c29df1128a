/* text_list.h: the text files that arguments name. */
#ifndef SK_TEXT_LIST_H
#define SK_TEXT_LIST_H
#include "src/agree.h"

typedef struct sk_text_file {
  char *path;
  int64_t size; /* bytes on the disk */
} sk_text_file;

typedef struct sk_text_list {
  int64_t n, cap;
  sk_text_file *at;
  int64_t skipped;
} sk_text_list;

/* Collective over comm: rank 0 looks, all ranks get the list. Folders are taken recursively in the byte order of names;
 * an argument that names no file is a glob pattern. Hidden, empty and packed files in folders are skipped with a note;
 * as arguments they are refused. No text at all is an error. */
int sk_text_list_make(MPI_Comm comm, int n_arg, char *const *arg, sk_text_list *l, sk_err *e);
void sk_text_list_free(sk_text_list *l);

/* Whether a path ends in `end`, in any case. */
bool sk_ends_in(const char *path, const char *end);
/* .gz and .zst */
bool sk_text_packed(const char *path);
/* .jsonl, packed or not */
bool sk_text_lines(const char *path);
#endif
