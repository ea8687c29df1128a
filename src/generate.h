/* generate.h: text from a checkpoint, in the recurrent form (spec section 9): a conv window and an SSM
 * state per Mamba layer, a key/value cache per attention layer. The layers are those of training, fed
 * with short pieces. */
#ifndef SK_GENERATE_H
#define SK_GENERATE_H
#include "src/engine.h"

typedef struct sk_decoder {
  sk_grid grid; /* of one rank */
  sk_engine engine;
  sk_layer_cache *cache; /* [layers] */
  sk_arena memory;       /* of the caches and the arrays below */
  int64_t capacity, piece, pos; /* longest sequence, tokens per piece, tokens fed so far */
  int32_t *ids, *start, *key_start; /* [piece] on the device */
  float *logits;         /* [V] on the device */
} sk_decoder;

/* Not collective. cfg must outlive the decoder. */
int sk_decoder_open(sk_decoder *d, const sk_config *cfg, const sk_ops *op, int64_t capacity, int64_t piece,
                    sk_err *e);
void sk_decoder_close(sk_decoder *d);
/* Forgets everything fed so far. */
void sk_decoder_reset(sk_decoder *d);
/* Feeds n >= 1 tokens; logits: host [V], of the token that follows the last one. */
void sk_decoder_feed(sk_decoder *d, const int32_t *ids, int64_t n, float *logits);

typedef struct sk_generate_opts {
  const char *from, *prompt;
  const char *tokenizer; /* "bytes" or a tokenizer.json; NULL: that of the checkpoint */
  int64_t tokens, seed;
  double temperature; /* 0: always the likeliest token */
} sk_generate_opts;

/* Collective over comm: loads the checkpoint and writes prompt and continuation to rank 0's stdout as
 * they come. The text is a function of the checkpoint, prompt, temperature and seed. */
int sk_generate(MPI_Comm comm, const sk_generate_opts *o, sk_err *e);
#endif
