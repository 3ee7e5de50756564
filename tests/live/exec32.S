/* A 32-bit program that fails to execute /nowhere/32 by execve(2) and by execveat(2), and ends with status 0. */
	.globl _start
	.section .rodata
path:	.asciz "/nowhere/32"
zero:	.asciz "zero"
word:	.asciz "corescope-32"
	.balign 4
argv:	.long zero, word, 0
	.text
_start:
	movl $11, %eax
	movl $path, %ebx
	movl $argv, %ecx
	movl $0, %edx
	int $0x80
	movl $358, %eax
	movl $-100, %ebx
	movl $path, %ecx
	movl $argv, %edx
	movl $0, %esi
	movl $0, %edi
	int $0x80
	movl $1, %eax
	movl $0, %ebx
	int $0x80
	.section .note.GNU-stack,"",@progbits
