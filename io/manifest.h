/* manifest.h: manifest.json of a checkpoint (design section 8), between a struct and its text.
 *
 *   {"format": "saker-checkpoint", "version": 3, "run_id", "step", "tokens", "cursor",
 *    "grid": {"pp", "dp", "cp", "tp"}, "skipped", "reruns", "rollbacks", "recent_losses": [...],
 *    "deck": text, "hf_config": text or null,
 *    "files": [{"name", "size", "sum64",
 *      "datasets": [{"name", "shape", "slabs": [{"start", "count", "sum64"}, ...]}, ...]}, ...],
 *    "manifest_xxh3_128": "..."}
 *
 * The fields from "skipped" to "recent_losses" may be missing: none. sum64, 16 hex digits: of 32-bit words
 * (little-endian, the last one filled up with zeros) times 1, 3, 5 and so on, modulo 2^64, of a file's bytes, or of a slab's
 * float32 values in row-major order. A slab is what one rank wrote; the slabs of a dataset cover it exactly. Version 1 has
 * the XXH3-128 of the same bytes, "xxh3_128", in its place (32 hex digits, as xxh128sum prints them). manifest_xxh3_128 is
 * the hash of the whole text with these 32 digits themselves replaced by 0s. */
#ifndef SK_MANIFEST_H
#define SK_MANIFEST_H
#include "io/ckpt.h"
#include "io/fsutil.h"

enum { SK_MANIFEST_VERSION = 3 };

typedef struct sk_manifest_file {
  char name[64]; /* plain name inside the folder */
  int64_t size;
  uint64_t sum;
  char hash[SK_HASH_HEX]; /* version 1: in place of the sum; else "" */
  int n_dset;
  sk_dset *dset; /* names owned after a parse, borrowed before printing */
} sk_manifest_file;

typedef struct sk_manifest_slab {
  int32_t file, dset;
  int64_t start[SK_MAX_DIMS], count[SK_MAX_DIMS];
  uint64_t sum;
  char hash[SK_HASH_HEX]; /* as above */
} sk_manifest_slab;

typedef struct sk_manifest {
  sk_ckpt_meta meta;
  int n_file;
  sk_manifest_file file[SK_CKPT_MAX_FILES];
  int64_t n_slab;
  sk_manifest_slab *slab; /* ordered by file, dataset, start */
} sk_manifest;

/* Not collective. Sorts m->slab; the text is owned by the caller. Fails when a text is not UTF-8. */
char *sk_manifest_print(sk_manifest *m, sk_err *e);

/* Not collective. Reads dir/manifest.json and checks it entirely: own hash, version, types, ranges, that
 * slabs cover their datasets. On failure *m is empty. */
int sk_manifest_read(const char *dir, sk_manifest *m, sk_err *e);

/* Frees what a read has allocated. */
void sk_manifest_free(sk_manifest *m);
#endif
