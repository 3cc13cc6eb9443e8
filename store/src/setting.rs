//! What an operator can change while the market runs.

use crate::{Result, Store, error};

impl Store {
    /// The image that a job gets which names none, by tag or digest.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn default_image(&self) -> Result<Option<String>> {
        let value = sqlx::query_scalar!("select value from settings where name = 'default_image'")
            .fetch_optional(&self.pool)
            .await?;
        value.map(|value| error::read_json("default_image", value)).transpose()
    }

    /// Sets the image that a job gets which names none.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn default_image_set(&self, image: &str) -> Result<()> {
        sqlx::query!(
            "insert into settings (name, value) values ('default_image', to_jsonb($1::text))
             on conflict (name) do update set value = excluded.value",
            image
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}
