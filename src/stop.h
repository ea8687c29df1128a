/* stop.h: reasons to stop early but in good order: SIGINT, SIGTERM, SIGUSR1, or --max-time running out. */
#ifndef SK_STOP_H
#define SK_STOP_H
#include "src/base.h"

/* Installs the handlers; a second SIGINT ends the process at once. */
void sk_stop_install(void);
/* This rank's view: a signal's name or NULL. Ranks agree in the step's own exchange. */
const char *sk_stop_signal(void);

/* "[D-]HH:MM:SS", "MM:SS" or seconds -> seconds; -1 when it is none of these. */
double sk_parse_duration(const char *s);
#endif
