/* The text behind the last error of this thread: torch_npu appends it to what it raises. */
#ifndef STANDIN_ERRORS_H
#define STANDIN_ERRORS_H

void standin_set_error(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
