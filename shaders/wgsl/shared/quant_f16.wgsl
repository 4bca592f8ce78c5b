// 16 bits a weight, as they are.
#set BITS16 1
#set VECTORS 4
#set HIGH 0
#include "shared/group.wgsl"
