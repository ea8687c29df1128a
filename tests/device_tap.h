/* device_tap.h: tap.h's check for the other files of this test; device.c has it. */
#ifndef SK_TESTS_DEVICE_TAP_H
#define SK_TESTS_DEVICE_TAP_H
#include <stdbool.h>
#include "src/base.h"
void device_ok(bool ok, const char *fmt, ...) SK_PRINTF(2, 3);
#endif
