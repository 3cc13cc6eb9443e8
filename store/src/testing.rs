//! A private Postgres for tests: one server a process, one database a test.

use std::{
    os::unix::process::CommandExt,
    path::PathBuf,
    process::Child,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread,
};

use nave_domain::{
    ChallengeId, HostId, Millis,
    host::{Inventory, Proven},
    rate::Rate,
    verdict::{Cause, Kind},
};
use sqlx::{Connection as _, PgConnection};

use crate::{Drawing, Heard, OpenChallenge, Result, Store, StoreError, embedded::Postgres, error, schema};

static SERVER: OnceLock<Postgres> = OnceLock::new();
static DATABASES: AtomicU32 = AtomicU32::new(0);

/// A host that did not come by a ticket.
#[derive(Debug, Clone)]
pub struct NewHost<'a> {
    /// Its id.
    pub host: HostId,
    /// Its name.
    pub name: &'a str,
    /// Who owns it.
    pub hotkey: &'a str,
    /// Its price.
    pub rate: Rate,
}

/// The processor of hosts whose claims count as proven, however large.
pub const CPU_MODEL: &str = "test";

impl Store {
    /// Makes a host known, whose claims count as proven on a [`CPU_MODEL`].
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn host_enrol(&self, new: &NewHost<'_>) -> Result<()> {
        let proven = serde_json::json!({ "milli_cpu": i64::MAX, "memory": i64::MAX, "cpu_model": CPU_MODEL });
        sqlx::query!(
            "insert into hosts (host_id, name, hotkey, gpu_hour, vcpu_hour, gib_hour, proven, mesh_key)
             values ($1, $2, $3, $4, $5, $6, $7, $8)",
            new.host.0,
            new.name,
            new.hotkey,
            new.rate.gpu_hour.0,
            new.rate.vcpu_hour.0,
            new.rate.gib_hour.0,
            proven,
            mesh_key(new.host)
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Takes note of a report of a host that does not say since when its machine runs.
    ///
    /// # Errors
    /// As [`Store::host_report`].
    pub async fn host_hear(
        &self,
        host: HostId,
        session: u64,
        sequence: u64,
        seen_generation: u64,
        inventory: &Inventory,
    ) -> Result<(u64, bool)> {
        self.host_report(host, Heard { session, sequence, seen_generation, boot: None }, inventory).await
    }

    /// Gives a host an address in the mesh.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn host_move(&self, host: HostId, address: std::net::IpAddr) -> Result<()> {
        sqlx::query!(
            "update hosts set mesh_address = $2::text::inet where host_id = $1",
            host.0,
            address.to_string()
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}

impl Store {
    /// Lets a host pass for one that has proven what it claims now.
    ///
    /// # Errors
    /// When it is not to be tested.
    pub async fn host_passed(&self, host: HostId) -> Result<()> {
        let rows = self.host_list().await?;
        let claims = rows.into_iter().find(|row| row.host == host).and_then(|row| row.inventory);
        let claims = claims.ok_or(StoreError::NotFound("host"))?;
        let seen = self.host_generation(host).await?;
        self.host_prove(host, seen, &Proven::of(&claims)).await
    }

    /// Has one host prove again what it claims.
    ///
    /// # Errors
    /// [`StoreError::Stale`] when it is not free, or not what it was at generation `seen`.
    pub async fn suite_begin(&self, host: HostId, seen: u64, cause: Cause) -> Result<()> {
        let begun = self.suites_begin(&[(host, seen)], cause).await?;
        if begun == [host] { Ok(()) } else { Err(StoreError::Stale("host")) }
    }

    /// Puts one challenge into the spec of its host, whatever that has proven.
    ///
    /// # Errors
    /// [`StoreError::Stale`] when it cannot be tested for this now, or was before.
    pub async fn challenge_draw(&self, drawing: &Drawing<'_>) -> Result<()> {
        let drawn = self.challenges_draw_beside(std::slice::from_ref(drawing)).await?;
        if drawn == [drawing.host] { Ok(()) } else { Err(StoreError::Stale("host")) }
    }

    /// As [`Store::hosts_retest_at`], for one.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn host_retest_at(&self, host: HostId, up: Millis) -> Result<()> {
        self.hosts_retest_at(&[(host, up)]).await
    }

    /// Gives a host a challenge that is nothing special.
    ///
    /// # Errors
    /// As [`Store::challenge_draw`].
    pub async fn challenge_give(
        &self,
        host: HostId,
        challenge: ChallengeId,
        kind: Kind,
        body: &serde_json::Value,
        claims: &Inventory,
    ) -> Result<()> {
        let cause = Cause::Enrolment;
        let drawing =
            Drawing { host, challenge, kind, cause, body, claims, shadow: false, window: None, lease: None };
        self.challenge_draw(&drawing).await
    }
}

/// A crowd of hosts, as measurements of what looks cost need it.
impl Store {
    /// Makes so many more hosts that are what this one is, with its leases and their jobs: each of a miner of its own,
    /// or all of the same.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn host_copy(&self, host: HostId, count: i32, one_miner: bool) -> Result<()> {
        let mut tx = self.begin().await?;
        let copies = [
            "create temporary table copies on commit drop as
                select n, gen_random_uuid() as host_id, gen_random_uuid() as job_id, gen_random_uuid() as lease_id
                from generate_series(1, $2) n where $1 is not null and $3 is not null",
            "insert into hosts select (jsonb_populate_record(h, jsonb_build_object(
                'host_id', c.host_id, 'name', c.host_id, 'mesh_key', encode(sha256(c.host_id::text::bytea), 'hex'),
                'hotkey', case when $3 then h.hotkey else 'miner ' || n end, 'mesh_address', null,
                'inventory', replace(h.inventory::text, 'SIM-', 'SIM-' || n || '-')::jsonb,
                'proven', replace(h.proven::text, 'SIM-', 'SIM-' || n || '-')::jsonb))).*
             from hosts h cross join copies c where h.host_id = $1 and $2 > 0",
            "insert into jobs select (jsonb_populate_record(j, jsonb_build_object(
                'job_id', c.job_id, 'idempotency_key', c.job_id))).*
             from leases l join jobs j using (job_id) cross join copies c
             where l.host_id = $1 and $2 > 0 and $3 is not null",
            "insert into leases select (jsonb_populate_record(l, jsonb_build_object(
                'lease_id', c.lease_id, 'job_id', c.job_id, 'host_id', c.host_id,
                'devices', to_jsonb(array(select replace(d, 'SIM-', 'SIM-' || n || '-') from unnest(l.devices) d))))).*
             from leases l cross join copies c where l.host_id = $1 and $2 > 0 and $3 is not null",
        ];
        for copy in copies {
            sqlx::query(copy).bind(host.0).bind(count).bind(one_miner).execute(&mut *tx).await?;
        }
        tx.commit().await?;
        Ok(())
    }
}

impl Store {
    /// Fills a market with miners, their hosts of eight devices, and leases that have closed, one in a thousand of them with a
    /// breach; one host in two had idle devices. Nothing of it is in the ledger.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn market_fill(&self, miners: i64, hosts: i64, leases: i64) -> Result<()> {
        let mut tx = self.begin().await?;
        sqlx::query("set local statement_timeout = '30min'").execute(&mut *tx).await?;
        sqlx::query(
            "with customers as (
                insert into customers (customer_id, name) select gen_random_uuid(), 'customer ' || n from generate_series(0, 99) n
                returning customer_id, substr(name, 10)::bigint as n),
             hosts as (
                insert into hosts (host_id, name, hotkey, state, gpu_hour, vcpu_hour, gib_hour, proven)
                select gen_random_uuid(), 'host ' || n, 'miner ' || n % $1::bigint, 'ready', 2000000, 0, 0, '{}'
                from generate_series(0, $2::bigint - 1) n returning host_id, substr(name, 6)::bigint as n),
             jobs as (
                insert into jobs (job_id, customer_id, idempotency_key, request_sha256, request, state, max_spend, charged)
                select gen_random_uuid(), customer_id, 'job ' || s, '', '{}', 'succeeded', 2000000, 1000000
                from generate_series(0, $3::bigint - 1) s join customers on n = s % 100
                returning job_id, substr(idempotency_key, 5)::bigint as n),
             leases as (
                insert into leases (lease_id, job_id, attempt, host_id, state, devices, milli_gpu, milli_cpu, memory, disk, gpu_hour,
                    vcpu_hour, gib_hour, run_ms_max, capped_by_spend, used_ms, outcome, charged, placed_at_ms, closed_at_ms, order_bytes,
                    baseline_gpu_hour, class)
                select gen_random_uuid(), job_id, 1, host_id, 'closed', '{}', 1000, 1000, 1073741824, 0, 2000000, 0, 0, 3600000, false,
                    1800000, jsonb_build_object('kind', 'exited', 'code', 0), 1000000, 0, now_ms(), 0, 2500000, 'h100'
                from jobs join hosts on hosts.n = jobs.n % $2 returning lease_id, job_id, host_id)
             insert into unsettled_leases select lease_id from leases",
        )
        .bind(miners)
        .bind(hosts)
        .bind(leases)
        .execute(&mut *tx)
        .await?;
        sqlx::query(
            "insert into events (kind, host_id, hotkey, lease_id, key, since_ms, from_ms, until_ms, detail, blame, confirmed_by,
                decided_at_ms, signature)
             select 'host_lost', host_id, hotkey, lease_id, lease_id::text, 0, 0, 60000, 'for measurement', 'host', 'absence',
                now_ms(), decode(repeat('00', 64), 'hex')
             from leases join hosts using (host_id) where abs(hashtext(lease_id::text)) % 1000 = 0",
        )
        .execute(&mut *tx)
        .await?;
        sqlx::query(
            "insert into idle_times (epoch, host_id, class, device_ms, gpu_hour)
             select epoch, host_id, 'h100', 3600000, 2000000 from hosts cross join epochs
             where hosts.state = 'ready' and abs(hashtext(host_id::text)) % 2 = 0",
        )
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        for table in ["jobs", "leases", "hosts", "unsettled_leases"] {
            sqlx::query(sqlx::AssertSqlSafe(format!("analyze {table}"))).execute(&self.pool).await?;
        }
        Ok(())
    }
}

/// A challenge, open or not, in the order of drawing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drawn {
    /// Its id.
    pub challenge: ChallengeId,
    /// What is tested.
    pub kind: Kind,
    /// Why.
    pub cause: Cause,
    /// What the host is asked to do.
    pub body: serde_json::Value,
    /// What the host answered, step by step.
    pub answers: Vec<serde_json::Value>,
    /// What came of it.
    pub verdict: Option<serde_json::Value>,
}

/// Times that tests choose, so that they need not wait.
impl Store {
    /// Lets the answer to a step have taken, or its host be silent for, `wall` on the database's
    /// clock and `up` on the control clock.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn challenge_took(
        &self,
        challenge: ChallengeId,
        step: u32,
        wall: Millis,
        up: Millis,
    ) -> Result<()> {
        sqlx::query!(
            "update challenge_steps set sent_at_ms = coalesce(answered_at_ms, now_ms()) - $3,
                sent_up_ms = coalesce(answered_up_ms, control_ms()) - $4
             where challenge_id = $1 and step = $2",
            challenge.0,
            step.cast_signed(),
            wall.0,
            up.0
        )
        .execute(&self.pool)
        .await?;
        self.look_now(challenge).await
    }

    /// Advances the control clock, as if hosts could have reached the control plane for `span`.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn clock_advance(&self, span: Millis) -> Result<()> {
        sqlx::query!("update control_clock set up_ms = up_ms + $1", span.0).execute(&self.pool).await?;
        Ok(())
    }

    /// Every challenge of a host, the oldest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn challenges_of_host(&self, host: HostId) -> Result<Vec<Drawn>> {
        let rows = sqlx::query!(
            r#"select challenge_id, kind, cause, challenge, verdict,
                    array(select answer from challenge_steps s where s.challenge_id = c.challenge_id
                        and answer is not null order by step) as "answers!"
               from challenges c where host_id = $1 order by challenge_id"#,
            host.0
        )
        .fetch_all(&self.pool)
        .await?;
        let rows = rows.into_iter().map(|row| {
            Ok(Drawn {
                challenge: row.challenge_id.into(),
                kind: error::read_name("a kind of test", row.kind)?,
                cause: error::read_name("the cause of a test", row.cause)?,
                body: row.challenge,
                answers: row.answers,
                verdict: row.verdict,
            })
        });
        rows.collect()
    }

    /// Every challenge without a verdict.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn challenges_open(&self) -> Result<Vec<OpenChallenge>> {
        let ids = sqlx::query_scalar!("select challenge_id from challenges where verdict is null");
        self.challenges(&ids.fetch_all(&self.pool).await?).await
    }

    /// Lets the time come of the window that is ahead.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn window_come(&self) -> Result<()> {
        sqlx::query!("update windows set opens_up_ms = 0 where opened_at_ms is null")
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Lets time pass since windows opened.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn windows_age(&self, span: Millis) -> Result<()> {
        sqlx::query!("update windows set opened_at_ms = opened_at_ms - $1", span.0)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Lets the time pass in which a host's inventory stays as it is.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn inventory_settle(&self, host: HostId) -> Result<()> {
        let settle = sqlx::query!("update hosts set inventory_at_ms = 0 where host_id = $1", host.0);
        settle.execute(&self.pool).await?;
        Ok(())
    }

    /// The control clock when a refused host is tested again.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn host_retry_up(&self, host: HostId) -> Result<Option<Millis>> {
        let retry = sqlx::query_scalar!("select retry_up_ms from hosts where host_id = $1", host.0);
        Ok(retry.fetch_one(&self.pool).await?.map(Millis))
    }
}

/// The mesh key of a host that did not come by a ticket.
#[must_use]
pub fn mesh_key(host: HostId) -> String {
    let bytes = [host.0.into_bytes(), [1; 16]].concat().try_into();
    let bytes: [u8; 32] = bytes.unwrap_or([1; 32]);
    nave_domain::mesh::MeshKey::new(bytes).map(|key| key.to_string()).unwrap_or_default()
}

/// A fresh, migrated database of its own.
///
/// # Panics
/// When Postgres is not installed or does not start: a test cannot go on without it.
pub async fn store() -> Store {
    let (url, name) = database().await;
    let store = Store::connect(&url).await.unwrap_or_else(|error| panic!("connect to {name}: {error}"));
    store.migrate().await.unwrap_or_else(|error| panic!("migrate {name}: {error}"));
    store
}

/// A connection to a database of its own as a program left it whose newest migration was `version`, and its connection string.
///
/// # Panics
/// As [`store`].
pub async fn database_at(version: i64) -> (PgConnection, String) {
    let (url, name) = database().await;
    let mut old =
        PgConnection::connect(&url).await.unwrap_or_else(|error| panic!("connect to {name}: {error}"));
    let migrated = schema::MIGRATIONS.run_to(version, &mut old).await;
    migrated.unwrap_or_else(|error| panic!("migrate {name}: {error}"));
    (old, url)
}

/// A market from before epochs were settled, brought up to date: its epoch 1 is confirmed, 2 has closed and 3 is open. Lease N of
/// its only host, `alpha`, is of job N and ran for 5 s, a micro-USD a millisecond. Epoch 1 has counted 1 whole, 2 s of 3, and 2 s
/// of 5, which is open; epoch 2 has counted 2 whole, of which its customer could pay 4000, and 2 s of 4; 6 was never counted,
/// and 7 refunded. Two verdicts are from epochs 1 and 2.
///
/// # Panics
/// As [`store`].
pub async fn market_upgraded() -> Store {
    let (mut old, url) = database_at(22).await;
    let filled = sqlx::raw_sql(OLD_MARKET).execute(&mut old).await;
    filled.unwrap_or_else(|error| panic!("fill an old market: {error}"));
    let store = Store::connect(&url).await.unwrap_or_else(|error| panic!("connect: {error}"));
    store.migrate().await.unwrap_or_else(|error| panic!("migrate an old market: {error}"));
    store
}

const OLD_MARKET: &str = "
    insert into epochs (epoch, state, chain, opened_at_ms, closed_at_ms, weights) values
        (1, 'confirmed', 'local', 100000, 200000, '{}'), (2, 'closed', 'local', 200000, 300000, null),
        (3, 'open', 'local', 300000, null, null);
    insert into customers (customer_id, name) values ('00000000-0000-0000-0000-0000000000ff', 'ada');
    insert into hosts (host_id, name, hotkey, state, gpu_hour, vcpu_hour, gib_hour, proven)
        values ('00000000-0000-0000-0000-0000000000aa', 'alpha', 'alpha', 'ready', 0, 3600000, 0, '{}');
    insert into jobs (job_id, customer_id, idempotency_key, request_sha256, request, state, max_spend, charged)
        select lpad(n::text, 32, '0')::uuid, customer_id, n::text, '', '{\"argv\": [\"true\"]}',
            case n when 5 then 'running' else 'succeeded' end, 5000, case n when 2 then 4000 when 7 then 0 else 5000 end
        from generate_series(1, 7) n cross join customers;
    insert into leases (lease_id, job_id, attempt, host_id, state, devices, milli_gpu, milli_cpu, memory, disk, gpu_hour, vcpu_hour,
            gib_hour, run_ms_max, capped_by_spend, order_bytes, placed_at_ms, started_at_ms, closed_at_ms, outcome, charged, used_ms, settled_ms)
        select job_id, job_id, 1, host_id, case n when 5 then 'running' else 'closed' end, '{}', 0, 1000, 0, 0, 0, 3600000, 0, 60000,
            false, 0, 150000, 150000, case n when 5 then null else 160000 end, case n when 5 then null else '{\"kind\": \"cancelled\"}'::jsonb end,
            charged, case n when 7 then 0 else 5000 end, case when n < 3 then 5000 when n < 6 then 2000 else 0 end
        from (select *, idempotency_key::int as n from jobs) j cross join hosts;
    insert into epoch_leases (epoch, lease_id, hotkey, used_ms, value)
        select case when n in (2, 4) then 2 else 1 end, lease_id, 'alpha', settled_ms, settled_ms
        from (select *, right(lease_id::text, 1)::int as n from leases) l where settled_ms > 0;
    insert into challenges (challenge_id, host_id, challenge, claims, verdict, decided_at_ms, kind)
        select gen_random_uuid(), host_id, '{}', '{}', '{\"passed\": {}}', at_ms, 'cpu'
        from hosts cross join (values (150000), (250000)) reached (at_ms)";

/// Connection string and name of a fresh, empty database.
///
/// # Panics
/// As [`store`].
pub async fn database() -> (String, String) {
    let server = tokio::task::spawn_blocking(|| SERVER.get_or_init(start).clone())
        .await
        .unwrap_or_else(|error| panic!("start Postgres: {error}"));
    server.ready().await.unwrap_or_else(|error| panic!("start Postgres: {error}"));
    let name = format!("test_{}", DATABASES.fetch_add(1, Ordering::Relaxed));
    server.create_database(&name).await.unwrap_or_else(|error| panic!("create {name}: {error}"));
    (server.url_of(&name), name)
}

/// Starts the server under a watcher that outlives this process and then removes it.
///
/// A test process can end without running destructors, so the clean-up is another
/// process' duty: it holds the read end of a pipe whose write end dies with us.
fn start() -> Postgres {
    let dir = std::env::temp_dir().join(format!("nave-test-pg-{}", std::process::id()));
    let postgres = Postgres::prepare(&dir).unwrap_or_else(|error| panic!("{error}"));
    let mut command = postgres.command().unwrap_or_else(|error| panic!("{error}"));
    command.arg("-c").arg("fsync=off").process_group(0);
    let (sender, receiver) = mpsc::channel();
    // The kernel's parent-death signal follows the thread that spawned: this one never ends.
    thread::spawn(move || {
        let child = command.spawn();
        let watched = child.map(|child| watch(&child, dir));
        drop(sender.send(watched));
        loop {
            thread::park();
        }
    });
    match receiver.recv() {
        Ok(Ok(())) => postgres,
        Ok(Err(error)) => panic!("start Postgres: {error}"),
        Err(error) => panic!("start Postgres: {error}"),
    }
}

/// Leaves a process behind that waits for this one to end, then ends the server and removes `dir`.
fn watch(server: &Child, dir: PathBuf) {
    let watcher = std::process::Command::new("python3")
        .arg("-c")
        .arg(WATCHER)
        .arg(server.id().to_string())
        .arg(dir)
        .stdin(std::process::Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap_or_else(|error| panic!("watch Postgres: {error}"));
    // Kept open until this process ends; its end is the watcher's signal.
    std::mem::forget(watcher);
}

const WATCHER: &str = "\
import os, shutil, signal, sys, time
pid, path = int(sys.argv[1]), sys.argv[2]
sys.stdin.buffer.read()
try:
    os.kill(pid, signal.SIGQUIT)
    for _ in range(100):
        os.kill(pid, 0)
        time.sleep(0.05)
except ProcessLookupError:
    pass
shutil.rmtree(path, ignore_errors=True)
";
