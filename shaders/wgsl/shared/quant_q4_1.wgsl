// scale * number + minimum.
#set BITS4 1
#set VECTORS 1
#set HIGH 0
#set OFFSET 0
#set SCALE_PAIR 1
#set MIN 1
#include "shared/group.wgsl"
