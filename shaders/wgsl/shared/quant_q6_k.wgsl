// d * scale * (number - 32), a scale for 16 weights.
#set BITS4 1
#set VECTORS 1
#set HIGH 2
#set OFFSET 32
#set SCALE_SIX 1
#set TWO_SCALES 1
#set HIGH2 1
#include "shared/group.wgsl"
