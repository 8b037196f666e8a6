//! What only the directory store does, in a real directory.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use store::{Store, Timing};
use tokio::time::Instant;

use crate::node::{CONFIG, LIMIT, Node, attrs, claim, key, local, value, within};
use crate::world::{Directory, World};

crate::suite!(Directory);

fn lease_until(n: u32, end: i64) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let value = value(n);
    format!(
        "{},\"Expires\":{}}}\n",
        value.trim_end_matches('}').to_string() + "}",
        now.saturating_add_signed(end)
    )
}

fn fast() -> Timing {
    Timing {
        poll: Duration::from_millis(200),
        ..Timing::default()
    }
}

#[test]
fn a_lease_whose_time_is_over_is_none() {
    local(async {
        let dir = Directory::new();
        dir.put(
            "config",
            r#"{"Network":"10.20.0.0/16","SubnetMin":"10.20.1.0","SubnetMax":"10.20.3.0"}"#,
        );
        dir.put("subnets/10.20.1.0-24", &lease_until(7, -10));
        dir.put("subnets/10.20.2.0-24", &lease_until(8, 3));
        dir.put("subnets/10.20.3.0-24", &lease_until(9, 1000));
        let mut node = Node::start(dir.store_with(fast()), 1).await;
        node.until("all", |node| node.complete && node.known.len() == 3)
            .await;
        assert_eq!(
            node.own_key(),
            Some(key("10.20.1.0-24")),
            "the one whose time was over"
        );
        assert_eq!(dir.get("subnets/10.20.1.0-24").unwrap(), value(1));
        node.until("an end", |node| {
            !node.known.contains_key(&key("10.20.2.0-24"))
        })
        .await;
        dir.put("subnets/10.20.2.0-24", &lease_until(8, 1000));
        node.until("a renewal", |node| {
            node.known.contains_key(&key("10.20.2.0-24"))
        })
        .await;
    });
}

#[test]
fn our_own_lease_is_taken_up_even_after_its_end() {
    local(async {
        let dir = Directory::new();
        dir.put("subnets/10.20.9.0-24", &lease_until(1, -10));
        let mut node = Node::start(dir.store(), 1).await;
        node.until("own", |node| {
            node.complete && node.own_key() == Some(key("10.20.9.0-24"))
        })
        .await;
        assert_eq!(dir.subnets().len(), 1);
    });
}

#[test]
fn a_half_written_file_is_waited_for() {
    local(async {
        let dir = Directory::new();
        dir.put("subnets/10.20.5.0-24", &value(5));
        let mut node = Node::start(dir.store(), 1).await;
        node.until("both", |node| node.complete && node.known.len() == 2)
            .await;
        // As an editor does it: emptied, and then written.
        std::fs::write(dir.path("subnets/10.20.5.0-24"), "").unwrap();
        node.follow(Duration::from_millis(300)).await;
        assert!(
            node.known.contains_key(&key("10.20.5.0-24")),
            "given up too soon"
        );
        std::fs::write(dir.path("subnets/10.20.5.0-24"), value(55)).unwrap();
        node.until("the change", |node| {
            node.known[&key("10.20.5.0-24")].attrs == attrs(55)
        })
        .await;
        std::fs::write(dir.path("subnets/10.20.5.0-24"), "{").unwrap();
        node.until("it stays broken", |node| {
            !node.known.contains_key(&key("10.20.5.0-24"))
        })
        .await;
    });
}

#[test]
fn what_a_power_cut_left_empty_is_free() {
    local(async {
        let dir = Directory::new();
        let config =
            r#"{"Network":"10.20.0.0/16","SubnetMin":"10.20.1.0","SubnetMax":"10.20.1.0"}"#;
        dir.put("config", config);
        dir.put("subnets/10.20.1.0-24", "");
        let long_ago = SystemTime::now() - Duration::from_secs(60);
        let file = std::fs::File::options()
            .write(true)
            .open(dir.path("subnets/10.20.1.0-24"));
        file.unwrap().set_modified(long_ago).unwrap();
        let mut node = Node::start(dir.store(), 1).await;
        node.until("own", |node| node.own_key() == Some(key("10.20.1.0-24")))
            .await;
    });
}

#[test]
fn what_is_no_lease_is_skipped() {
    local(async {
        let dir = Directory::new();
        dir.put("subnets/10.20.5.0-24", &value(5));
        dir.put("subnets/.10.20.6.0-24.swp", &value(6));
        std::fs::create_dir(dir.path("subnets/10.20.7.0-24")).unwrap();
        std::os::unix::fs::symlink("10.20.8.0-24", dir.path("subnets/10.20.8.0-24")).unwrap();
        std::os::unix::fs::symlink("/nowhere", dir.path("subnets/10.20.9.0-24")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            dir.path("subnets/10.20.10.0-24"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        dir.put("subnets/10.20.11.0-24", &"x".repeat(100_000));
        let mut node = Node::start(dir.store(), 1).await;
        node.until("the good one", |node| {
            node.complete && node.known.len() == 2
        })
        .await;
        dir.put("subnets/10.20.12.0-24", &value(12));
        node.until("another good one", |node| node.known.len() == 3)
            .await;
    });
}

#[test]
fn the_directory_is_made_where_it_is_missing() {
    local(async {
        let dir = Directory::new();
        std::fs::remove_dir_all(dir.path("")).unwrap();
        let mut store = dir.store();
        let node = Node::new(dir.store(), 1);
        let own = within(store.own(&node.config, &node.who())).await;
        assert_eq!(own, None);
        let mode = std::fs::metadata(dir.path("subnets"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o755);
        dir.put("config", CONFIG);
        within(store.config()).await;
        let config = Node::new(dir.store(), 1).config;
        within(store.acquire(&config, &claim(1))).await.unwrap();
    });
}

#[test]
fn a_directory_that_goes_is_away_and_not_empty() {
    local(async {
        let dir = Directory::new();
        dir.put("subnets/10.20.5.0-24", &value(5));
        let mut node = Node::start(dir.store_with(fast()), 1).await;
        node.until("both", |node| node.complete && node.known.len() == 2)
            .await;
        // As when a shared file system is no longer mounted.
        let elsewhere = dir.path("x").parent().unwrap().with_file_name("elsewhere");
        std::fs::rename(dir.path(""), &elsewhere).unwrap();
        node.until("away", |node| !node.complete).await;
        node.follow(Duration::from_secs(1)).await;
        assert_eq!((node.known.len(), &node.revoked), (2, &None));
        assert!(!dir.path("").exists(), "must not be made anew");
        std::fs::rename(&elsewhere, dir.path("")).unwrap();
        dir.put("subnets/10.20.6.0-24", &value(6));
        let back = Instant::now();
        node.until("back", |node| node.complete && node.known.len() == 3)
            .await;
        assert!(
            back.elapsed() < Duration::from_secs(2),
            "{:?}",
            back.elapsed()
        );
        assert_eq!(node.revoked, None);
    });
}

#[test]
fn leases_removed_all_at_once_are_published_again() {
    local(async {
        let dir = Directory::new();
        let mut one = Node::start(dir.store_with(fast()), 1).await;
        let mut two = Node::start(dir.store_with(fast()), 2).await;
        one.until("both", |node| node.complete && node.known.len() == 2)
            .await;
        two.until("both", |node| node.complete && node.known.len() == 2)
            .await;
        let mut before = dir.subnets();
        std::fs::rename(dir.path("subnets"), dir.path("old")).unwrap();
        let deadline = Instant::now() + LIMIT;
        while !dir.path("subnets").exists() || dir.subnets().len() < 2 {
            assert!(Instant::now() < deadline, "not published again");
            tokio::join!(
                one.follow(Duration::from_millis(100)),
                two.follow(Duration::from_millis(100))
            );
        }
        tokio::join!(
            one.follow(Duration::from_millis(700)),
            two.follow(Duration::from_millis(700))
        );
        let mut after = dir.subnets();
        before.sort();
        after.sort();
        assert_eq!(before, after);
        assert_eq!((&one.revoked, &two.revoked), (&None, &None));
        assert_eq!(
            (one.known.len(), two.known.len()),
            (2, 2),
            "a peer was given up"
        );
    });
}

#[test]
fn a_held_lock_is_named_and_costs_no_lease() {
    local(async {
        let dir = Directory::new();
        dir.put("subnets/10.20.9.0-24", &value(1));
        dir.put(".lock", "");
        let mode = |mode| std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(dir.path(".lock"), mode(0o644)).unwrap();
        let lock = std::fs::File::open(dir.path(".lock")).unwrap();
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let mut node = Node::new(dir.store_with(fast()), 1);
        let who = node.who();
        within(node.store.own(&node.config, &who)).await;
        let waits = node.store.status();
        let named = async {
            while !waits
                .get()
                .is_some_and(|why| why.contains(".lock has been locked"))
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            drop(lock);
        };
        let (lease, ()) = tokio::join!(node.acquire(), named);
        assert_eq!(lease.unwrap().key, key("10.20.9.0-24"));
        assert_eq!(dir.subnets(), ["10.20.9.0-24"]);
        let now = std::fs::metadata(dir.path(".lock")).unwrap().permissions();
        assert_eq!(now.mode() & 0o777, 0o600);
    });
}

#[test]
fn a_second_write_within_one_tick_is_seen() {
    use std::io::Write;
    local(async {
        let dir = Directory::new();
        dir.put("subnets/10.20.5.0-24", &value(5));
        let path = dir.path("subnets/10.20.5.0-24");
        let mut node = Node::start(dir.store_with(fast()), 1).await;
        for n in [6, 7] {
            let mut file = std::fs::File::options().write(true).open(&path).unwrap();
            let then = file.metadata().unwrap().modified().unwrap();
            file.write_all(value(n).as_bytes()).unwrap();
            file.set_modified(then).unwrap();
            drop(file);
            node.until("the change", |node| {
                node.known
                    .get(&key("10.20.5.0-24"))
                    .is_some_and(|lease| lease.attrs == attrs(n))
            })
            .await;
        }
    });
}

#[test]
fn every_foreign_write_is_answered() {
    local(async {
        let dir = Directory::new();
        let mut node = Node::start(dir.store_with(fast()), 1).await;
        node.until("own", |node| node.own_key().is_some()).await;
        let file = format!("subnets/{}", node.own_key().unwrap());
        for _ in 0..3 {
            dir.put(&file, &value(1).replace("02:00:00", "02:ff:ff"));
            let deadline = Instant::now() + LIMIT;
            while !dir.get(&file).is_some_and(|now| now.contains("02:00:00")) {
                assert!(Instant::now() < deadline, "{:?}", dir.get(&file));
                node.follow(Duration::from_millis(50)).await;
            }
        }
        assert_eq!(node.revoked, None);
    });
}

#[test]
fn fifteen_thousand_files_are_read_quickly() {
    local(async {
        let dir = Directory::new();
        dir.put("config", r#"{"Network":"10.0.0.0/8","SubnetLen":24}"#);
        std::fs::create_dir_all(dir.path("subnets")).unwrap();
        for n in 1..=15_000_u32 {
            let name = format!("subnets/10.{}.{}.0-24", n >> 8, n & 255);
            std::fs::write(dir.path(&name), value(100_000 + n)).unwrap();
        }
        let began = Instant::now();
        let mut node = Node::start(dir.store_with(fast()), 1).await;
        let taken = began.elapsed();
        node.until("all", |node| node.complete && node.known.len() == 15_001)
            .await;
        eprintln!(
            "15,000 files: own after {taken:?}, all after {:?}; {}",
            began.elapsed(),
            crate::node::peak()
        );
        assert!(
            began.elapsed() < Duration::from_secs(5),
            "{:?}",
            began.elapsed()
        );
        // The next looks find nothing new, and report no lease.
        let until = tokio::time::sleep(Duration::from_secs(1));
        tokio::pin!(until);
        loop {
            tokio::select! {
                event = node.store.next_event() => {
                    assert!(event.leases.is_empty(), "{} again", event.leases.len());
                }
                () = &mut until => break,
            }
        }
    });
}
