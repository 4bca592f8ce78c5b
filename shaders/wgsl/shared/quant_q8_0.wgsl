// scale * byte.
#set BITS8 1
#set VECTORS 2
#set HIGH 0
#set SCALE_HALF 1
#include "shared/group.wgsl"
