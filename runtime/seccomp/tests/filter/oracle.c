/* Prints the program that libseccomp makes of the rules on standard input, or
 * the numbers that are asked for there.
 * The library's own header is not needed: these are its prototypes. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct comparison {
	unsigned int argument;
	unsigned int operator;
	uint64_t a, b;
};

void *seccomp_init(uint32_t default_action);
int seccomp_arch_add(void *filter, uint32_t arch);
int seccomp_arch_remove(void *filter, uint32_t arch);
int seccomp_syscall_resolve_name(const char *name);
int seccomp_syscall_resolve_name_arch(uint32_t arch, const char *name);
int seccomp_rule_add_array(void *filter, uint32_t action, int call,
			   unsigned int count, const struct comparison *list);
int seccomp_export_bpf(const void *filter, int fd);

#define EEXIST 17

int main(void)
{
	char word[64], name[64];
	void *filter = NULL;
	uint32_t number;
	unsigned int count;

	while (scanf("%63s", word) == 1) {
		int error = 0;

		if (!strcmp(word, "init") && scanf("%u", &number) == 1) {
			filter = seccomp_init(number);
			error = filter ? 0 : -1;
		} else if (!strcmp(word, "arch") && scanf("%u", &number) == 1) {
			error = seccomp_arch_add(filter, number);
			if (error == -EEXIST)
				error = 0;
		} else if (!strcmp(word, "not") && scanf("%u", &number) == 1) {
			error = seccomp_arch_remove(filter, number);
		} else if (!strcmp(word, "number") && scanf("%u %63s", &number, name) == 2) {
			printf("%d\n", seccomp_syscall_resolve_name_arch(number, name));
		} else if (!strcmp(word, "rule") &&
			   scanf("%u %63s %u", &number, name, &count) == 3 && count <= 6) {
			struct comparison list[6];
			int call = seccomp_syscall_resolve_name(name);

			for (unsigned int i = 0; i < count; i++)
				if (scanf("%u %u %lu %lu", &list[i].argument, &list[i].operator,
					  &list[i].a, &list[i].b) != 4)
					return 3;
			if (call == -1)
				continue;
			error = seccomp_rule_add_array(filter, number, call, count, list);
		} else {
			fprintf(stderr, "bad command %s\n", word);
			return 3;
		}
		if (error) {
			fprintf(stderr, "%s %s: error %d\n", word, name, error);
			return 4;
		}
	}
	if (!filter)
		return 0;
	return seccomp_export_bpf(filter, 1) ? 5 : 0;
}
