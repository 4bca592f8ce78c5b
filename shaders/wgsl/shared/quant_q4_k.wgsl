// d * scale * number - dmin * minimum, in superblocks of eight groups.
#set BITS4 1
#set VECTORS 1
#set HIGH 0
#set OFFSET 0
#set SCALE_SUPER 1
#set MIN 1
#include "shared/group.wgsl"
