// 32 bits a weight, as they are.
#set BITS32 1
#set VECTORS 8
#set HIGH 0
#include "shared/group.wgsl"
