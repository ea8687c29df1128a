#include "src/lr.h"
#include <math.h>

double sk_lr(const sk_config *c, int64_t t) {
  const double lr = c->optimizer.lr, lo = c->optimizer.schedule.min_lr;
  const int64_t warm = c->optimizer.schedule.warmup, decay = c->optimizer.schedule.decay;
  const int64_t steps = c->train.steps;
  if (t <= warm) return lr * (double)t / (double)warm;
  switch (c->optimizer.schedule.kind) {
    case SK_LR_COSINE: {
      double x = steps > warm ? (double)(t - warm) / (double)(steps - warm) : 1;
      return lo + (lr - lo) * 0.5 * (1 + cos(3.14159265358979323846 * fmin(x, 1)));
    }
    case SK_LR_WSD: {
      if (t <= steps - decay) return lr;
      double x = fmin((double)(t - (steps - decay)) / (double)decay, 1);
      return lo > 0 ? lr * pow(lo / lr, x) : lr * (1 - x);
    }
    case SK_LR_POWER: {
      double from = warm > 0 ? (double)warm : 1;
      return fmax(lo, lr * pow(from / (double)t, c->optimizer.schedule.power));
    }
    default: return lr;
  }
}
