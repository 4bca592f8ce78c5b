//! Making a guest of a policy.

/// Makes a WebAssembly guest of a policy type, with the hooks that are named:
/// `scheduler`, `batcher`, `admission`, `autoscaler`, `feedback`. Its name and
/// version are the crate's. Natively it only checks that the type has the hooks.
///
/// Once in a crate: `export_policy!(Edf: scheduler, feedback);`
#[macro_export]
macro_rules! export_policy {
    ($policy:ty: $($hook:ident),+ $(,)?) => {
        $($crate::__hook!(check $hook $policy);)+

        #[cfg(target_arch = "wasm32")]
        const _: () = {
            #[doc(hidden)]
            struct Component;

            ::std::thread_local! {
                static POLICY: ::std::cell::RefCell<Option<$policy>> =
                    const { ::std::cell::RefCell::new(None) };
            }

            impl $crate::guest::Instance for Component {
                type Policy = $policy;
                const NAME: &'static str = env!("CARGO_PKG_NAME");
                const VERSION: &'static str = env!("CARGO_PKG_VERSION");

                fn with<R>(call: impl FnOnce(&mut Option<$policy>) -> R) -> R {
                    POLICY.with_borrow_mut(call)
                }
            }

            $crate::guest::base::export!(Component with_types_in $crate::guest::base);
            $($crate::__hook!(export $hook);)+
        };
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __hook {
    (check scheduler $policy:ty) => { $crate::__hook!(has $policy, SchedulerPolicy); };
    (check batcher $policy:ty) => { $crate::__hook!(has $policy, BatcherPolicy); };
    (check admission $policy:ty) => { $crate::__hook!(has $policy, AdmissionPolicy); };
    (check autoscaler $policy:ty) => { $crate::__hook!(has $policy, AutoscalerPolicy); };
    (check feedback $policy:ty) => { $crate::__hook!(has $policy, FeedbackPolicy); };
    (has $policy:ty, $hook:ident) => {
        const _: () = {
            const fn has_hook<P: $crate::$hook>() {}
            has_hook::<$policy>()
        };
    };
    (export scheduler) => {
        $crate::guest::scheduler::export!(Component with_types_in $crate::guest::scheduler);
    };
    (export batcher) => {
        $crate::guest::batcher::export!(Component with_types_in $crate::guest::batcher);
    };
    (export admission) => {
        $crate::guest::admission::export!(Component with_types_in $crate::guest::admission);
    };
    (export autoscaler) => {
        $crate::guest::autoscaler::export!(Component with_types_in $crate::guest::autoscaler);
    };
    (export feedback) => {
        $crate::guest::feedback::export!(Component with_types_in $crate::guest::feedback);
    };
}
