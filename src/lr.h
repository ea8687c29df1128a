/* lr.h: the learning rate of a step. */
#ifndef SK_LR_H
#define SK_LR_H
#include "src/config.h"

/* Step t = 1, 2, ... Warmup for every kind: lr * t / warmup. After it
 *   constant  lr
 *   cosine    from lr at the end of warmup to min_lr at train.steps along half a cosine
 *   wsd       lr, then exponentially down to min_lr over the last `decay` steps (linearly when min_lr
 *             is 0) (spec section 6.2)
 *   power     lr * (warmup / t)^power, at least min_lr */
double sk_lr(const sk_config *c, int64_t t);
#endif
