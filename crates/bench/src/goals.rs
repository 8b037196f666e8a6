//! What is measured with how many peers, and what must be reached.

use crate::figure::Goal;

/// A number of peers, and what is measured with it.
pub struct Size {
    /// How many.
    pub peers: u32,
    pub cold: bool,
    pub ready: bool,
    pub follow: bool,
    pub idle: bool,
    /// MiB.
    pub memory: Option<Goal>,
    /// Milliseconds in user space.
    pub user: Option<Goal>,
}

const fn size(peers: u32) -> Size {
    Size {
        peers,
        cold: false,
        ready: false,
        follow: false,
        idle: false,
        memory: None,
        user: None,
    }
}

/// All there are, smallest first.
pub const SIZES: [Size; 5] = [
    Size {
        cold: true,
        ready: true,
        follow: true,
        ..size(100)
    },
    Size {
        cold: true,
        idle: true,
        ..size(1_000)
    },
    Size {
        cold: true,
        follow: true,
        memory: Some(Goal {
            must: 13.0,
            aim: 10.0,
        }),
        ..size(5_000)
    },
    Size {
        follow: true,
        ..size(10_000)
    },
    Size {
        cold: true,
        memory: Some(Goal {
            must: 21.0,
            aim: 16.0,
        }),
        user: Some(Goal {
            must: 80.0,
            aim: 60.0,
        }),
        ..size(15_000)
    },
];

pub const COLD_RATIO: Goal = Goal {
    must: 0.8,
    aim: 0.4,
};
pub const REQUESTS: Goal = Goal {
    must: 12.0,
    aim: 8.0,
};
pub const ROUTE_MS: Goal = Goal {
    must: 1.0,
    aim: 0.3,
};
/// One goal only.
pub const ROUTE_P99_MS: Goal = Goal {
    must: 5.0,
    aim: 5.0,
};
pub const EVENT_CPU_MS: Goal = Goal {
    must: 0.3,
    aim: 0.1,
};
pub const READY_MS: Goal = Goal {
    must: 40.0,
    aim: 25.0,
};
pub const IDLE_PERCENT: Goal = Goal {
    must: 0.05,
    aim: 0.02,
};
