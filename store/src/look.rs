//! When verifiers look at which open challenge: when something came, or when its time is over.
//!
//! Whoever writes that something came locks its row here after all others, and who puts looks off
//! waits for nobody, so that neither holds up anyone.

use nave_domain::{ChallengeId, HostId, Millis};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{Result, Store};

/// A challenge that is to be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// Which.
    pub challenge: ChallengeId,
    /// How often something came.
    pub news: i64,
}

impl Store {
    /// Has every open challenge looked at, and no other: verifiers that know nothing of looks draw and decide without.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn looks_mend(&self) -> Result<()> {
        // Whoever decides one just now knows what to do about it.
        sqlx::query!(
            "with lost as (
                select challenge_id, host_id from challenges c
                where verdict is null and not exists (select from challenge_looks l where l.challenge_id = c.challenge_id)
                order by challenge_id for update skip locked)
             insert into challenge_looks (challenge_id, host_id) select challenge_id, host_id from lost
             on conflict do nothing"
        )
        .execute(&self.pool)
        .await?;
        sqlx::query!(
            "with over as (
                select l.challenge_id from challenge_looks l join challenges c using (challenge_id)
                where c.verdict is not null order by l.challenge_id for update of l skip locked)
             delete from challenge_looks l using over where l.challenge_id = over.challenge_id"
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Open challenges that are to be looked at by `until` on the control clock, those first that
    /// wait for longest.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn looks_due(&self, until: Millis) -> Result<Vec<Look>> {
        let rows = sqlx::query!(
            "select challenge_id, news from challenge_looks where look_up_ms <= $1 order by look_up_ms, challenge_id",
            until.0
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(rows.into_iter().map(|row| Look { challenge: row.challenge_id.into(), news: row.news }).collect())
    }

    /// Puts looks off until a moment on the control clock, those at whose challenges nothing has
    /// come meanwhile.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn looks_defer(&self, looks: &[(Look, Millis)]) -> Result<()> {
        let ids: Vec<Uuid> = looks.iter().map(|(look, _)| look.challenge.0).collect();
        let news: Vec<i64> = looks.iter().map(|(look, _)| look.news).collect();
        let ups: Vec<i64> = looks.iter().map(|(_, up)| up.0).collect();
        // Where something comes just now, it is looked at again.
        sqlx::query!(
            "with seen as (
                select l.challenge_id, d.up_ms
                from unnest($1::uuid[], $2::bigint[], $3::bigint[]) as d (challenge_id, news, up_ms)
                join challenge_looks l using (challenge_id) where l.news = d.news for update of l skip locked)
             update challenge_looks l set look_up_ms = seen.up_ms from seen where l.challenge_id = seen.challenge_id",
            &ids,
            &news,
            &ups
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Has a challenge looked at at once, if it is open.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn look_now(&self, challenge: ChallengeId) -> Result<()> {
        came(&mut *self.pool.acquire().await?, challenge).await
    }
}

/// A challenge was drawn.
pub(crate) async fn begin(tx: &mut PgConnection, challenge: ChallengeId, host: HostId) -> Result<()> {
    sqlx::query!("insert into challenge_looks (challenge_id, host_id) values ($1, $2)", challenge.0, host.0)
        .execute(tx)
        .await?;
    Ok(())
}

/// As [`begin`], for several.
pub(crate) async fn begin_all(tx: &mut PgConnection, challenges: &[Uuid], hosts: &[Uuid]) -> Result<()> {
    sqlx::query!(
        "insert into challenge_looks (challenge_id, host_id) select * from unnest($1::uuid[], $2::uuid[])",
        challenges,
        hosts
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Something came that may change what is done about a challenge.
pub(crate) async fn came(tx: &mut PgConnection, challenge: ChallengeId) -> Result<()> {
    sqlx::query!(
        "update challenge_looks set look_up_ms = control_ms(), news = news + 1 where challenge_id = $1",
        challenge.0
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// A host is not the one any more that is tested.
pub(crate) async fn host_changed(tx: &mut PgConnection, host: HostId) -> Result<()> {
    sqlx::query!(
        "with its as (
            select challenge_id from challenge_looks where host_id = $1 order by challenge_id for update)
         update challenge_looks l set look_up_ms = control_ms(), news = news + 1
         from its where l.challenge_id = its.challenge_id",
        host.0
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// A challenge has its verdict; what its host shows beside it may have waited for that.
pub(crate) async fn end(tx: &mut PgConnection, challenge: ChallengeId) -> Result<()> {
    sqlx::query!(
        "with ended as (delete from challenge_looks where challenge_id = $1 returning host_id)
         update challenge_looks l set look_up_ms = control_ms(), news = news + 1
         from ended where l.host_id = ended.host_id and l.challenge_id <> $1",
        challenge.0
    )
    .execute(tx)
    .await?;
    Ok(())
}
