// scale * (number - 8).
#set BITS4 1
#set VECTORS 1
#set HIGH 0
#set OFFSET 8
#set SCALE_HALF 1
#include "shared/group.wgsl"
