// The upper 16 bits of each weight.
#set BITS16 1
#set VECTORS 4
#set HIGH 0
#set BRAIN 1
#include "shared/group.wgsl"
